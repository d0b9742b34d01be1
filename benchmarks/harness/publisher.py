"""Publishes one generation into a store that has its users and items already, as the trainer does after a
refit."""

import sys
from pathlib import Path

from benchmarks.harness import synthetic


def main() -> int:
    """Arguments: address, users, items, rank, seed, and the file that says that writing begins."""
    url, *sizes, begun = sys.argv[1:]
    n_users, n_items, rank, seed = (int(text) for text in sizes)
    generation = synthetic.make(n_users, n_items, rank=rank, seed=seed)
    Path(begun).touch()
    synthetic.publish(url, generation)
    return 0


if __name__ == "__main__":
    sys.exit(main())
