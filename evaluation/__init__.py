"""How wrong predictions are: players in the rating environment (`course`), engines on data sets (`offline`).

Used by the command and the benchmarks; knows nothing of either.
"""
