"""Publishes one generation into a store that has its users and items already: by the trainer's own publisher,
records in a process of their own included."""

import asyncio
import sys
import time
from pathlib import Path

from benchmarks.data import synthetic
from featurestore.store import Store
from trainer.archive.segments import no_step
from trainer.fit_job.results import FitResult, fit_in_memory
from trainer.publication.publish import Publisher
from trainer.threads import Threads


async def publish(url: str, result: FitResult) -> None:
    """Publish a fit; it is live at the end."""
    store = await Store.open(synthetic.store_settings(url), hot=False)
    try:
        epoch = (await store.generations.live()).epoch
        async with synthetic.leading(store) as lease:
            publisher = Publisher(store, lease, Threads(), step=no_step)
            done = await publisher.publish(
                epoch, result, engine="variational", positions={}, folder=None, automatic=True
            )
            assert done.live
    finally:
        await store.close()


def main() -> int:
    """Publish; arguments: address, users, items, rank, seed, and the file that says that writing begins."""
    url, *sizes, begun = sys.argv[1:]
    n_users, n_items, rank, seed = (int(text) for text in sizes)
    made = synthetic.make(n_users, n_items, rank=rank, seed=seed)
    result = fit_in_memory(made.model, made.users, made.items, synthetic.ids(0, n_users))
    # From here on the load is measured: making the tables takes the cores too, and is no part of a
    # publication.
    Path(begun).touch()
    began = time.monotonic()
    asyncio.run(publish(url, result))
    print(f"{n_users} users in {time.monotonic() - began:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
