"""The generation that a service process serves. Invariant: a caller that takes it once has one whole
generation for as long as it wants.

A new generation is loaded and checked beside the one that serves, then one reference is swapped. While the
store is away the old one goes on serving.
"""

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from featurestore.errors import FullReason, StoreDamaged, StoreError, StoreUnavailable
from featurestore.experiments import Experiments, read_experiments
from featurestore.generations.live import LiveGeneration
from featurestore.generations.loader import GenerationLoader
from featurestore.generations.manifest import Beat, Kept, Pointer, read_pointer
from featurestore.keys import Keys, whole
from featurestore.wire.functions import ask_many, call_many, encode_call
from featurestore.wire.resp import by_field, encode

if TYPE_CHECKING:
    from featurestore.store import Store

log = logging.getLogger(__name__)

# Four beats fit into the two seconds after which a worker counts as gone.
BEAT_S = 0.5
# Half a millisecond of this event loop; what is left comes with the next poll, at once.
DELTAS_AT_ONCE = 64
# New ids take half a millisecond, too.
ITEMS_AT_ONCE = 2_000
# A load that failed costs the store the whole table: not again with each poll.
RETRY_LOAD_S = 1.0
# The position of their reply in that of a poll.
_EXPERIMENTS = 4


def _asked(keys: Keys) -> tuple[bytes, ...]:
    """Return what each poll asks for, as RESP."""
    return (
        encode(b"TIME"),
        encode(b"HGETALL", keys.live),
        encode(b"HKEYS", keys.generations),
        encode(b"HMGET", keys.config, b"identity", b"scale", b"scale_open"),
        encode(b"HGETALL", keys.experiments),
    )


class Follower:
    """Keeps `live` up to date from a `Store`; `pointer` is what was polled last, `experiments`
    those that run.

    Counters for metrics: `loads_total`, `failures_total`; `polled_at` is `time.monotonic` of the last good
    poll, `failure` why the last one failed, if it did.
    """

    def __init__(
        self,
        store: "Store",
        cache_dir: Path,
        worker_id: str,
        poll_s: float = 0.1,
        prepare: Callable[[int], Awaitable[None]] | None = None,
    ) -> None:
        """`prepare`: is awaited with an epoch before a generation of it is served for the first time. Raises
        `StoreRefused` where `cache_dir` cannot be written.
        """
        self._store = store
        self._keys = store.keys
        self._client = store.redis
        self._asked = _asked(store.keys)
        self._loader = GenerationLoader(store, cache_dir)
        self._worker_id = worker_id
        self._poll_s = poll_s
        self._prepare = prepare
        self.live: LiveGeneration | None = None
        self.experiments = Experiments()
        self.pointer: Pointer | None = None
        self.loads_total = 0
        self.failures_total = 0
        self.polled_at = float("-inf")
        self.failure: Exception | None = None
        # Of the store that `live` came from.
        self._identity = store.identity
        self._numbers: frozenset[int] = frozenset()
        self._clock_offset = 0.0
        self._beaten_at = float("-inf")
        self._beaten: tuple[int, int, str] | None = None
        self._loading: asyncio.Task[None] | None = None
        self._load_at = float("-inf")
        self._load_failure = ""
        self._experiments_read: Mapping[bytes, bytes] | None = {}
        # The prior of what the scale was before it was decided: it is not served.
        self._outdated = 0

    @property
    def full(self) -> FullReason | None:
        """What has no room left for ratings, as the leader said last; it ends by itself where polls fail."""
        return self.pointer.full_at(time.monotonic() + self._clock_offset) if self.pointer else None

    def is_away(self, within_s: float) -> bool:
        """Whether the store did not answer the last poll, or has not answered any `within_s`."""
        # What it keeps may be damaged: then it has answered.
        if isinstance(self.failure, StoreDamaged):
            return False
        return isinstance(self.failure, StoreUnavailable) or time.monotonic() - self.polled_at > within_s

    async def run(self, stop: asyncio.Event) -> None:
        """Follow until `stop` is set. Every error is logged and tried again."""
        try:
            while not stop.is_set():
                try:
                    more = await self._poll()
                    self.failure = None
                except StoreError as exc:
                    more = False
                    self.failures_total += 1
                    if str(exc) != str(self.failure):
                        log.warning("polling the store failed: %s", exc)
                    self.failure = exc
                except Exception as exc:
                    # A defect. A worker that follows no more would be of no use, and go on: it tries again.
                    more = False
                    self.failures_total += 1
                    if repr(exc) != repr(self.failure):
                        log.exception("polling the store failed unexpectedly")
                    self.failure = exc
                if not more:
                    with contextlib.suppress(TimeoutError):
                        # `wait_for` of Python 3.11 drops a cancellation that comes as `stop` is set.
                        async with asyncio.timeout(self._poll_s):
                            await stop.wait()
        finally:
            if self._loading is not None:
                self._loading.cancel()
                await asyncio.gather(self._loading, return_exceptions=True)
        with contextlib.suppress(StoreError):
            # A worker that says so is not waited for.
            await self._client.hdel(self._keys.workers, self._worker_id)

    async def _poll(self) -> bool:
        """Poll once; return whether there is more to be read at once."""
        if self._store.identity != self._identity:
            self._drop()
        live = self.live
        if live is not None:
            await self._beat_if_due(live)
        known = 0
        if live is not None:
            items = self._store.items(live.epoch)
            known = len(items)
        # Before it leaves: a reply that was waited for, or lay unread, tells what was so then.
        asked_at = time.monotonic()
        replies = await self._ask(live, known)
        (seconds, microseconds), fields, numbers, config, experiments, *rest = replies
        pointer_fields = by_field(fields)
        identity, *scale = config
        if identity is None or identity.decode() != self._identity:
            # Emptied while it was connected; where the connection was lost, this has been done.
            await self._store.look_again()
            return True
        if not self._store.scale.decided:
            self._store.scale.take(*scale)
        now = time.monotonic()
        self._clock_offset = int(seconds) + int(microseconds) / 1e6 - now
        self.pointer = pointer = read_pointer(pointer_fields, self._keys.live)
        self._numbers = frozenset(whole(number, self._keys.generations) for number in numbers)
        if live is not None and pointer.only_epoch not in (None, live.epoch):
            # The history that it serves ends without it: it was stopped, or cut off, and not waited for.
            self.live = None
        if self.live is not None and self._is_outdated(self.live):
            self._outdated, self.live = self.live.generation, None
        erasures = pointer_fields.get(b"erasures", b"")
        self._store.users.polled(Kept(self._numbers), asked_at, erasures, pointer)
        self.polled_at = now
        self._follow_experiments(experiments)
        more = False
        if live is not None and live is self.live:
            stream, ids = rest
            entries = [(entry, by_field(delta)) for entry, delta in stream]
            items.follow(known, ids)
            more = len(ids) == ITEMS_AT_ONCE or len(entries) == DELTAS_AT_ONCE
            # An item that the catalogue has registered has the prior until it is rated.
            if entries or len(items) > live.n_items:
                followed = await self._loader.with_deltas(live, entries, len(items))
                # A load that ended meanwhile has read the same deltas, or does not need them.
                if self.live is live:
                    self.live = followed
        self._serve_what_is_named(pointer, now)
        return more

    async def _ask(self, live: LiveGeneration | None, known: int) -> list[Any]:
        """Return the replies to a poll by a worker that serves `live` and knows so many items. Experiments
        that cannot be read are a `StoreDamaged`: what answers users does not rest on them.
        """
        # One round trip, ten times a second: by redis-py it would be the longest that a lookup waits for.
        calls, bulk = self._asked, self._store.bulk
        if live is not None:
            deltas, order = self._keys.deltas(live.epoch, live.generation), self._keys.order(live.epoch)
            after, last = f"({live.after}".encode(), known + ITEMS_AT_ONCE - 1
            calls = (
                *calls,
                encode(b"XRANGE", deltas, after, b"+", b"COUNT", b"%d" % DELTAS_AT_ONCE),
                encode(b"LRANGE", order, b"%d" % known, b"%d" % last),
            )
        replies = await ask_many(bulk, calls)
        for place, reply in enumerate(replies):
            if isinstance(reply, Exception):
                replies[place] = failure = bulk.failure(reply)
                if place != _EXPERIMENTS or not isinstance(failure, StoreDamaged):
                    raise failure
        return replies

    def _follow_experiments(self, fields: list[bytes] | StoreDamaged) -> None:
        damage = fields if isinstance(fields, StoreDamaged) else None
        known = None if isinstance(fields, StoreDamaged) else by_field(fields)
        if known != self._experiments_read:
            self._experiments_read = known
            self.experiments = read_experiments(known or {})
            if damage is not None:
                log.error("experiments cannot be read: %s", damage)
            if self.experiments.damaged:
                log.error("experiments cannot be read", extra={"names": self.experiments.damaged})

    def _serve_what_is_named(self, pointer: Pointer, now: float) -> None:
        """Serve what the pointer names; it is loaded where it is not here."""
        live, named = self.live, (pointer.epoch, pointer.generation)
        here = None if live is None else (live.epoch, live.generation)
        self._store.users.serves(set() if here is None else {here})
        if not (self._loading is None or self._loading.done()) or now - self._load_at < RETRY_LOAD_S:
            return
        if here != named and pointer.generation not in {0, self._outdated}:
            self._loading = asyncio.create_task(self._load(*named), name=f"load-generation-{named[1]}")

    def _is_outdated(self, live: LiveGeneration) -> bool:
        # What it would answer may not even be on the scale; the trainer publishes another at once.
        return self._store.scale.outdated(live.model, live.meta.summary.n_ratings)

    def _drop(self) -> None:
        """Serve nothing of a store that has been replaced: its item rows mean other items in the new one."""
        log.warning("the store is another one", extra={"was": self._identity, "now": self._store.identity})
        self._identity = self._store.identity
        self.live = self.pointer = None
        self._outdated = 0
        if self._store.users.copies is not None:
            self._store.users.copies.clear()
        self._load_at = float("-inf")

    async def _load(self, epoch: int, generation: int) -> None:
        """Load a generation and serve it."""
        try:
            loaded = await self._loader.load(epoch, generation)
            items = self._store.items(epoch)
            await items.refresh()
            await items.require_whole()
            if self._is_outdated(loaded):
                self._outdated = generation
            else:
                await self._go_live(loaded)
            self._load_at, self._load_failure = float("-inf"), ""
        except StoreError as exc:
            # Keep the one that serves; the next poll tries again, or finds that the pointer has moved on.
            self._load_at = time.monotonic()
            self.failures_total += 1
            if self._load_failure != str(exc):
                log.warning("loading generation %d failed: %s", generation, exc)
            # Tried again and again, said once.
            self._load_failure = str(exc)

    async def _go_live(self, loaded: LiveGeneration) -> None:
        epoch, generation, before = loaded.epoch, loaded.generation, self.live
        if self._prepare is not None and (before is None or before.epoch != epoch):
            await self._prepare(epoch)
        if self.live is not None or await self._announce(epoch, generation):
            self.live = loaded
            self.loads_total += 1
            shown = {"epoch": epoch, "generation": generation, "items": loaded.n_items}
            log.info("generation live", extra=shown)
            await self._loader.remove_unused(self._numbers, generation)

    async def _announce(self, epoch: int, generation: int) -> bool:
        """Say what this worker is about to serve; return whether that is still the live generation."""
        # Said first, asked second: a process that switches epochs either sees this worker and waits for it,
        # or had switched before.
        await self._beat(epoch, generation, "")
        self.pointer = await self._store.generations.live()
        return (self.pointer.epoch, self.pointer.generation) == (epoch, generation)

    async def _beat_if_due(self, live: LiveGeneration) -> None:
        serves = (live.epoch, live.generation, self.experiments.version)
        # At once after a change: a switch of generations waits for this.
        if serves != self._beaten or time.monotonic() - self._beaten_at >= BEAT_S:
            self._beaten, self._beaten_at = serves, time.monotonic()
            # A store that is full, or that misses replicas, takes none; it is followed all the same.
            with contextlib.suppress(StoreUnavailable):
                await self._beat(*serves)

    async def _beat(self, epoch: int, generation: int, experiments: str) -> None:
        at = time.monotonic() + self._clock_offset
        beat = Beat(epoch=epoch, generation=generation, at=at, pid=os.getpid(), experiments=experiments)
        args = [self._worker_id.encode(), msgspec.json.encode(beat)]
        # By a function, which a store without memory takes: a switch of generations waits for workers.
        await call_many(self._store.bulk, [encode_call("beat", [self._keys.workers], args)])
