"""Engines side by side on a file of ratings: split, fit, predict, compare."""
