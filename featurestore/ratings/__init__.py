"""The ratings log: appending to it, its stream, its epochs."""
