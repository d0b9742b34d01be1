"""Engines of others that Foldin is compared with: those that rate, and those that rank, tuned."""
