"""The HTTP service: predicts, recommends and learns over a feature store, with nothing but its answer between
two awaits.

Invariant: a request uses one generation from start to end, and every answer that depends on one names it.
"""
