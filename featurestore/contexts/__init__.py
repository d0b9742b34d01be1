"""Contexts of ratings: what was told with them."""
