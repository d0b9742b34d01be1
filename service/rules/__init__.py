"""Rules at the time of asking: which items may be in a list, and in which order and number."""
