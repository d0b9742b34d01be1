"""What was shown, and what came of it."""
