"""Items that are deleted with their ratings."""
