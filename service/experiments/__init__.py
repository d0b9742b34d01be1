"""Experiments as calls see them: the arm of a user, and what is counted by arm."""
