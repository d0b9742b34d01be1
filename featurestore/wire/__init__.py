"""The hot connection to the store, and the functions that run inside it."""
