"""Files of ratings become columns.

Their layout is found, their rows are checked, each bad one keeps its line and reason.
"""
