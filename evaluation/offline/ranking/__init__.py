"""Ranked lists against held-out ratings: figures, engines that rank, their tuning, the table."""
