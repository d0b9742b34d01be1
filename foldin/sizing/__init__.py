"""`foldin size`: what a deployment of a given size takes."""
