"""Calls about what lists may have, and what is tried on a share of the users."""
