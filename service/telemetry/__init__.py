"""How workers are and have been."""
