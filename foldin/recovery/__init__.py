"""Ratings brought back, kept elsewhere, compared: restore, undo, backup, verify."""
