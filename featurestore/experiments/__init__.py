"""Experiments: users split among generations or scenarios, and what came of it."""
