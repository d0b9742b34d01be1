"""Experiments: users split among scenarios, and what came of it."""
