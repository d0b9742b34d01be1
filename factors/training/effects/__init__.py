"""What the sets of rated items, attributes and contexts say: the regressions of a fit, one for each term."""
