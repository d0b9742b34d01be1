"""Benchmarks of whole stacks: refits, restores, a user who outweighs others, a store on a cluster."""
