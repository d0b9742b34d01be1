"""The feature store: keys, record bytes, server-side functions, hot lookups, the ratings log and generations.

Everything that other processes may rely on between two moments is in the store, under the names of `keys.py`,
in the bytes of `codecs.py`, and is changed in one step by one function of `functions.lua`.
"""
