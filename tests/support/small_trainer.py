"""What a trainer does as far as services can tell, for tests without the real one."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence

from featurestore.commands import Command, Outcome
from featurestore.leases import Lease
from featurestore.ratings.log import NewRating
from featurestore.store import Store
from tests.support.factories import lead, publish, rating, write_generation
from tests.support.serving import Client, serving

Decide = Callable[[Command], Outcome | None]


class Trainer:
    """Takes commands, and does what a trainer does as far as services can tell."""

    def __init__(self, store: Store, lease: Lease) -> None:
        self._store = store
        self._lease = lease
        self.taken: list[Command] = []
        self.decide: Decide = lambda command: None
        self.hold = asyncio.Event()
        self.hold.set()

    async def run(self) -> None:
        after = "0"
        while True:
            for command in await self._store.commands.take(after, 50):
                after = command.stream_id
                self.taken.append(command)
                await self._store.commands.report(self._lease, command.id, Outcome("running"))
                await self.hold.wait()
                outcome = self.decide(command) or await self._do(command)
                await self._store.commands.report(self._lease, command.id, outcome)

    async def _do(self, command: Command) -> Outcome:
        if command.kind in ("erase", "take_back"):
            return Outcome("done")
        written = await write_generation(self._store, self._lease, epoch=command.epoch, n_items=4, seed=3)
        await written.writer.flip(automatic=False)
        return Outcome("done", written.writer.number)


# Who rates in a store that no test says more of.
RATINGS = (rating("ann", "dune", 5.0), rating("bob", "emma", 2.0))


@contextlib.asynccontextmanager
async def training(
    store: Store, items: Sequence[bytes], ratings: Sequence[NewRating] = ()
) -> AsyncIterator[Trainer]:
    """A trainer that leads, and has published these items and those who have rated."""
    lease = await lead(store, ttl_ms=600_000)
    await store.items(1).register(items)
    await store.ratings.append(ratings)
    await publish(store, lease, n_items=len(items), users=[each.user_id for each in ratings])
    trainer = Trainer(store, lease)
    task = asyncio.create_task(trainer.run())
    try:
        yield trainer
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


@contextlib.asynccontextmanager
async def serving_with_trainer(store: Store, ratings: Sequence[NewRating] = RATINGS) -> AsyncIterator[Client]:
    """A service beside a trainer, with the items `dune`, `emma`, `0`."""
    items = [b"dune", b"emma", b"0"]
    async with training(store, items, ratings), serving(store.settings, live=1) as (client, _):
        yield client
