"""Engines side by side on a data set: split, fit, predict, compare."""
