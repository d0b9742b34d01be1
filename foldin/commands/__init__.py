"""The commands of `foldin`: which there are, how one is run, and how all are described."""
