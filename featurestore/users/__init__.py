"""User records: reading them by the counter rule, and writing those of a generation."""
