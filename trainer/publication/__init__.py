"""Writing a fit beside the live generation, and the switch to it."""
