"""The end of an erasure: the files that the store writes."""
