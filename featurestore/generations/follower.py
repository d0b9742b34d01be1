"""The generations that a service process serves: the live one, and the arms of an experiment. Invariant: a
caller that takes one once has one whole generation for as long as it wants.

A new generation is loaded and checked beside those that serve, then one reference is swapped. While the
store is away the old ones go on serving.
"""

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from featurestore.errors import (
    FullReason,
    GenerationBroken,
    GenerationUnknown,
    StoreDamaged,
    StoreError,
    StoreUnavailable,
)
from featurestore.experiments.definition import Experiment, Experiments, read_experiments
from featurestore.generations.live import LiveGeneration
from featurestore.generations.loader import GenerationLoader
from featurestore.generations.manifest import Beat, Kept, Pointer, read_pointer
from featurestore.keys import whole

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


class Served(NamedTuple):
    """What answers a user. `arm`: the position in the `experiment` of the arm that it is, and the user's
    `mark` there; -1 where it is none, or where the arm's generation cannot be served.
    """

    live: LiveGeneration | None
    experiment: Experiment | None = None
    arm: int = -1
    mark: int = 0


class Follower:
    """Keeps `live` up to date from a `Store`; `pointer` is what was polled last. `experiments`: those that
    run in the history that is live, `arms`: the generations of these beside the live one, by number.

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
        self._loader = GenerationLoader(store, cache_dir)
        self._worker_id = worker_id
        self._poll_s = poll_s
        self._prepare = prepare
        self.live: LiveGeneration | None = None
        self.arms: dict[int, LiveGeneration] = {}
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
        self._experiments_read: tuple[Mapping[bytes, bytes] | None, int] = {}, 0
        # Arms that cannot be served: they are not tried again before the experiments change.
        self._lost: set[int] = set()
        # The prior of what the scale was before it was decided: it is not served.
        self._outdated = 0
        # Of a migration to another store.
        self._stage = ""
        self._moved_to: str | None = None

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
        # One round trip, ten times a second: 0.13 ms of this event loop.
        pipe = self._client.pipeline()
        pipe.time()
        pipe.hgetall(self._keys.live)
        pipe.hkeys(self._keys.generations)
        pipe.hmget(self._keys.config, "identity", "scale", "scale_open")
        pipe.hgetall(self._keys.experiments)
        held: list[LiveGeneration] = []
        if live is not None:
            held = [live, *self.arms.values()]
            items = self._store.items(live.epoch)
            known = len(items)
            for each in held:
                deltas = self._keys.deltas(each.epoch, each.generation)
                pipe.xrange(deltas, f"({each.after}", "+", DELTAS_AT_ONCE)
            pipe.lrange(self._keys.order(live.epoch), known, known + ITEMS_AT_ONCE - 1)
        # Before it leaves: a reply that was waited for, or lay unread, tells what was so then.
        asked_at = time.monotonic()
        # What answers users does not rest on experiments: where they cannot be read, there are none.
        replies = await pipe.execute(spared=_EXPERIMENTS)
        (seconds, microseconds), pointer_fields, numbers, config, experiments, *rest = replies
        identity, *scale = config
        if identity is None or identity.decode() != self._identity:
            # Emptied while it was connected; where the connection was lost, this has been done.
            await self._store.look_again()
            return True
        if not self._store.scale.decided:
            self._store.scale.take(*scale)
        now = time.monotonic()
        self._clock_offset = seconds + microseconds / 1e6 - now
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
        self._follow_experiments(experiments, pointer.epoch)
        more = False
        if held and held[0] is self.live:
            *deltas_of, ids = rest
            items.follow(known, ids)
            more = len(ids) == ITEMS_AT_ONCE
            for each, entries in zip(held, deltas_of, strict=True):
                # An item that the catalogue has registered has the prior until it is rated.
                if entries or len(items) > each.n_items:
                    self._put(each, await self._loader.with_deltas(each, entries, len(items)))
                more |= len(entries) == DELTAS_AT_ONCE
        self._serve_what_is_named(pointer, now)
        return more

    def _follow_experiments(self, fields: Mapping[bytes, bytes] | StoreDamaged, epoch: int) -> None:
        damage = fields if isinstance(fields, StoreDamaged) else None
        known = None if isinstance(fields, StoreDamaged) else fields
        if (known, epoch) != self._experiments_read:
            self._experiments_read = known, epoch
            self.experiments = read_experiments(known or {}).of_epoch(epoch)
            self._lost.clear()
            if damage is not None:
                log.error("experiments cannot be read: %s", damage)
            if self.experiments.damaged:
                log.error("experiments cannot be read", extra={"names": self.experiments.damaged})

    def for_user(self, user_id: bytes) -> "Served":
        """Return what answers a user: of an experiment over generations the arm, else what is live."""
        experiment = self.experiments.over_generations
        if experiment is None:
            return Served(self.live)
        mark, live = experiment.mark_of(user_id), self.live
        place = experiment.arm_of(mark)
        number = (place >= 0 and experiment.arms[place].generation) or 0
        # Numbers are given once, whatever the epoch.
        own = live if live is not None and live.generation == number else self.arms.get(number)
        return Served(live) if own is None else Served(own, experiment, place, mark)

    def holds(self, generation: int) -> bool:
        """Whether this process serves a generation, as the live one or as an arm."""
        return generation in self.arms or (self.live is not None and self.live.generation == generation)

    def _put(self, before: LiveGeneration, followed: LiveGeneration) -> None:
        """Serve the later state of a generation, unless a load that ended meanwhile has taken its place: that
        has read the same deltas, or does not need them.
        """
        if self.live is before:
            self.live = followed
        elif self.arms.get(before.generation) is before:
            self.arms[before.generation] = followed

    def _arms_wanted(self, pointer: Pointer) -> set[int]:
        """Return the generations of an experiment that are not the live one."""
        experiment = self.experiments.over_generations
        # They were read with the pointer of the last poll, which may be an earlier one.
        if experiment is None or experiment.definition.epoch != pointer.epoch:
            return set()
        return {*experiment.generations} - {pointer.generation}

    def _followed_experiments(self) -> str:
        """Return the version of the experiments, as soon as each arm is served, or known to be lost."""
        if self.pointer is None or self._arms_wanted(self.pointer) - self._lost - self.arms.keys():
            return "-"
        return self.experiments.version

    def _serve_what_is_named(self, pointer: Pointer, now: float) -> None:
        """Serve what the pointer and an experiment name. What is not here is loaded, one after the other."""
        stage = pointer.migration.partition(" ")[0]
        if stage != self._stage:
            log.warning("foldin migrate: the store is %s", stage or "not moving any more: it was given up")
        if pointer.moved_to not in {None, self._moved_to}:
            log.error("the store moves to %s: set FOLDIN_REDIS_URL to it, and start again", pointer.moved_to)
        self._stage, self._moved_to = stage, pointer.moved_to
        live, wanted = self.live, self._arms_wanted(pointer)
        number = pointer.generation
        if live is not None and number in self.arms and live.generation != number:
            # An arm that goes live is here already; what was live may be an arm, or is dropped below.
            self.arms[live.generation], live = live, self.arms.pop(number)
            self.live = live
        for gone in self.arms.keys() - wanted:
            del self.arms[gone]
        held = [*self.arms.values()] if live is None else [live, *self.arms.values()]
        self._store.users.serves({(each.epoch, each.generation) for each in held})
        if not (self._loading is None or self._loading.done()) or now - self._load_at < RETRY_LOAD_S:
            return
        here = live is not None and (live.epoch, live.generation) == (pointer.epoch, number)
        first = [number][: number not in {0, self._outdated}]
        missing = sorted(wanted - self.arms.keys() - self._lost) if here else first
        if missing:
            load = self._load(pointer.epoch, missing[0], arm=here)
            self._loading = asyncio.create_task(load, name=f"load-generation-{missing[0]}")

    def _is_outdated(self, live: LiveGeneration) -> bool:
        # What it would answer may not even be on the scale; the trainer publishes another at once.
        return self._store.scale.outdated(live.model, live.meta.summary.n_ratings)

    def _drop(self) -> None:
        """Serve nothing of a store that has been replaced: its item rows mean other items in the new one."""
        log.warning("the store is another one", extra={"was": self._identity, "now": self._store.identity})
        self._identity = self._store.identity
        self.live = self.pointer = None
        self._outdated = 0
        self.arms.clear()
        if self._store.users.copies is not None:
            self._store.users.copies.clear()
        self._load_at = float("-inf")

    async def _load(self, epoch: int, generation: int, *, arm: bool) -> None:
        """Load a generation and serve it, as the live one or as an `arm` beside it."""
        try:
            loaded = await self._loader.load(epoch, generation)
            items = self._store.items(epoch)
            await items.refresh()
            await items.require_whole()
            if self._is_outdated(loaded):
                self._outdated = generation
            elif not arm:
                await self._go_live(loaded)
            elif self.live is not None and self.live.epoch == epoch:
                self.arms[generation] = loaded
            self._load_at, self._load_failure = float("-inf"), ""
        except StoreError as exc:
            # Keep the one that serves; the next poll tries again, or finds that the pointer has moved on.
            self._load_at = time.monotonic()
            self.failures_total += 1
            if arm and isinstance(exc, GenerationBroken | GenerationUnknown):
                self._lost.add(generation)
            if self._load_failure != str(exc):
                log.warning("loading generation %d failed: %s", generation, exc)
            # Tried again and again, said once.
            self._load_failure = str(exc)

    async def _go_live(self, loaded: LiveGeneration) -> None:
        epoch, generation, before = loaded.epoch, loaded.generation, self.live
        if self._prepare is not None and (before is None or before.epoch != epoch):
            await self._prepare(epoch)
        if self.live is not None or await self._announce(epoch, generation):
            before, self.live = self.live, loaded
            self.loads_total += 1
            if before is not None and before.epoch == epoch:
                # If an experiment names it; the next poll drops it otherwise.
                self.arms[before.generation] = before
            elif before is not None:
                self.arms.clear()
            self.arms.pop(generation, None)
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
        serves = (live.epoch, live.generation, self._followed_experiments())
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
        await self._client.call("beat", ([self._keys.workers], args))
