"""The half-step as loops that numba compiles, for fits of many ratings."""
