"""One fit in a process of its own: its input, its process, and the files it leaves."""
