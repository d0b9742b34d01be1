"""The mathematics of Foldin: fit, fold in, score, rank, explain.

Arrays in, arrays out. Nothing in this package does I/O, reads a clock or touches global random state, so that one
function gives the same answer in the fit, in the service and in a notebook.
"""
