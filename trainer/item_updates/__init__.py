"""Items folded in between fits, and pushed as deltas."""
