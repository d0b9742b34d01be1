"""Users of a like taste."""
