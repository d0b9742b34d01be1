"""Generations: which there are, which is live, writing one, following the live one."""
