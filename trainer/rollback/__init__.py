"""Whether the ratings that arrive speak against the live generation, and the way back if they do."""
