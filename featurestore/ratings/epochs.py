"""Which epochs ratings go to, and the change from one history to the next. Invariant: a rating that is
acknowledged is in the history that is live when anybody reads, before, during and after the change.

Every step may be repeated, by another process too: numbers are given once, partitions are switched by
comparing first.
"""

import asyncio
import re

from featurestore.client import Client
from featurestore.errors import EpochBusy, EpochGone, RatingsLeftOut, StoreDamaged, StoreError
from featurestore.generations.catalog import Generations
from featurestore.generations.served import FOLLOWED_S, wait_until_served
from featurestore.keys import Keys, shown_key
from featurestore.leases import Lease, fence_of
from featurestore.wire.connection import Prepare

# A worker that beats polls ten times a second; one that serves the old epoch longer than this is stuck.
HANDOVER_S = 5.0
# The live one, and perhaps one that is being prepared.
_EPOCHS = re.compile(rb"[1-9]\d*(?:,[1-9]\d*)?")


class Epochs:
    """The epochs that each partition's ratings go to, as this process last heard.

    `expected`: those of a partition, like `1` or `1,2`; empty before the first `refresh`.
    """

    def __init__(self, keys: Keys, client: Client, generations: Generations, prepare: Prepare) -> None:
        """`prepare` sets a store up again that was wiped."""
        self._keys = keys
        self._client = client
        self._generations = generations
        self._prepare = prepare
        self.expected: dict[int, bytes] = {}

    async def refresh(self) -> None:
        """Read the epochs of all partitions."""
        found = await self._read()
        if None in found:
            await self._prepare()
            found = await self._read()
        if None in found:
            raise StoreError("the store does not keep what is written to it")
        self.expected = {p: self._checked(p, epochs) for p, epochs in enumerate(found) if epochs is not None}

    async def look_again(self) -> None:
        """The store is another one than was known: make sure of it, and read its epochs."""
        await self._prepare()
        await self.refresh()

    def _checked(self, partition: int, epochs: bytes) -> bytes:
        if _EPOCHS.fullmatch(epochs) is None:
            raise StoreDamaged(shown_key(self._keys.epochs(partition)), f"{epochs[:20]!r} names no epochs")
        return epochs

    async def learn(self, partition: int, epochs: bytes) -> None:
        """Take what a function said; nothing at all means that the store was wiped."""
        if epochs:
            self.expected[partition] = self._checked(partition, epochs)
        else:
            await self.refresh()

    async def begin(self, most_live: int | None = None, *, by: str = "") -> int:
        """Begin a new history beside the live one; each rating goes to both from now on. `by`: what prepares
        it, in the pointer from then on (see `hold`).

        Raises `EpochBusy`, and `RatingsLeftOut` where more than `most_live` ratings had come in live and
        would not be in the new epoch: counted in the step from which each goes to both.
        """
        keys = self._keys
        (reply,) = await self._client.call("begin_epoch", ([keys.live, keys.stored], [by.encode()]))
        if reply[0] == b"BUSY":
            raise EpochBusy("another new history is being prepared")
        epoch = int(reply[1])
        await self._client.hset(keys.items(epoch), b"", b"")
        live = (await self._generations.live()).epoch
        change = (b"%d" % live, b"%d,%d" % (live, epoch))
        left_out = await self._switch(dict.fromkeys(range(keys.partitions), change))
        if most_live is not None and left_out > most_live:
            await self.abandon(epoch)
            raise RatingsLeftOut(left_out)
        return epoch

    async def hold(self, epoch: int, by: str) -> None:
        """Say that an epoch is being prepared: a trainer gives it up a minute after this was last said.

        Raises `EpochGone` where it is not being prepared any more.
        """
        args = [b"%d" % epoch, by.encode()]
        (reply,) = await self._client.call("hold_epoch", ([self._keys.live], args))
        if reply[0] != b"OK":
            raise EpochGone(epoch)

    async def require(self, epoch: int) -> None:
        """Raise `EpochGone` where an epoch is neither live nor being prepared."""
        fields = "epoch", "pending", "abandoned"
        live, pending, abandoned = await self._client.hmget(self._keys.live, *fields)
        if b"%d" % epoch not in {live, pending} - {abandoned}:
            raise EpochGone(epoch)

    async def abandon(self, epoch: int, *, lease: Lease | None = None) -> None:
        """Give up an epoch that is being prepared, and remove it. Safe to repeat. `lease`: of a leader that
        decides so; None where whatever began it does.

        Raises `StoreError` if it is live, `LeaseLost`.
        """
        args = [b"%d" % epoch, fence_of(lease)]
        (reply,) = await self._client.call("abandon_epoch", ([self._keys.live], args))
        if reply[0] == b"LIVE":
            raise StoreError(f"epoch {epoch} is live")
        tail = b",%d" % epoch
        found = await self._read()
        await self._switch(
            {
                p: (text, text.removesuffix(tail))
                for p, text in enumerate(found)
                if text and text.endswith(tail)
            }
        )
        await self._generations.remove_epoch(epoch)
        await self._client.call("end_epoch", ([self._keys.live], [b"%d" % epoch]))

    async def finish(self, epoch: int) -> None:
        """Let the epoch that has gone live be the only one, once no worker serves another: where one has not
        said that, `HANDOVER_S` later at most. Safe to repeat.

        Raises `StoreError` if it is not live.
        """
        pointer = await self._generations.live()
        if pointer.epoch != epoch:
            raise StoreError(f"epoch {epoch} is not live")
        # Before, a rating would not show on a worker that still serves the epoch before.
        await wait_until_served(self._generations, epoch, pointer.generation, HANDOVER_S)
        found, tail = await self._read(), b",%d" % epoch
        changes = {p: (text, b"%d" % epoch) for p, text in enumerate(found) if text and text.endswith(tail)}
        if changes and any(worker.epoch != epoch for worker in await self._generations.workers()):
            # One is late, or was not waited for. It is told to serve nothing; one that does not hear it reads
            # nothing by then.
            await self._client.call("take_over_epoch", ([self._keys.live], [b"%d" % epoch]))
            await asyncio.sleep(FOLLOWED_S)
        await self._switch(changes)
        await self._client.call("end_epoch", ([self._keys.live], [b"%d" % epoch]))

    async def _read(self) -> list[bytes | None]:
        return await self._client.of_each("GET", map(self._keys.epochs, range(self._keys.partitions)))

    async def _switch(self, changes: dict[int, tuple[bytes, bytes]]) -> int:
        """Change what partitions write to; return how many ratings had come live into the first of their
        epochs.
        """
        if not changes:
            return 0
        live = 0
        calls = []
        for p, (before, after) in changes.items():
            both = max(before, after, key=len).split(b",")
            names = [self._keys.epochs(p), *(self._keys.counts(int(epoch), p) for epoch in both)]
            calls.append((names, [before, after]))
        replies = await self._client.call("switch_epochs", *calls)
        for (partition, (_, after)), reply in zip(changes.items(), replies, strict=True):
            if reply[0] != b"OK":
                raise StoreError(
                    f"partition {partition} is at epochs {reply[1]!r}, changed by another process"
                )
            live += int(reply[1])
            self.expected[partition] = after
        return live
