"""A namespace moves to another store while it serves."""
