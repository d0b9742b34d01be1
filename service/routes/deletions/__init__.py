"""Deleting for good, and the receipts of it."""
