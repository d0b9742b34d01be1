"""`foldin export`: what a running Foldin knows, as a file."""
