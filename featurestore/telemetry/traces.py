"""What leads a trace from the process that stored ratings to the one that archives them: a mark for each
call that is traced, in a stream of its own.

Invariant: entries of the ratings' streams are as they always were, so that every version reads them; a mark
that is lost costs a span. Marks name a trace and places in streams, no user.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec

from featurestore.client import Client
from featurestore.errors import StoreError
from featurestore.keys import Keys
from featurestore.ratings.stream import RatingsStream
from featurestore.telemetry.tracing import Tracing

log = logging.getLogger(__name__)

# What a second of calls leaves where each is traced; a mark has some 100 bytes.
MOST_MARKS = 10_000
# Of which some 5 ms of the event loop are taken at once.
_READ_AT_ONCE = 1_000
# A person who looks at a trace has waited longer for it.
_LOOK_EVERY_S = 0.5
# Batches that are remembered: at most a few minutes, as a batch is read every tenth of a second.
_BATCHES = 2_000
# What was not archived until then is not followed further; the alerts tell of such a trainer.
_GIVEN_UP_AFTER_S = 300.0
_FIELD = b"m"


class Mark(msgspec.Struct):
    """That the ratings of the trace `carried` stand in these streams of `epoch`, by partition at the latest
    where `ends` says (ms, number).
    """

    carried: str
    epoch: int
    ends: dict[int, tuple[int, int]]


class _Batch(NamedTuple):
    """A batch that was archived: where it ends, and from when to when it took, in ns since 1970."""

    epoch: int
    last: Mapping[int, tuple[int, int]]
    events: int
    times_ns: tuple[int, int]


@dataclass(slots=True)
class _Followed:
    """A mark, and by the clock of the loop until when it is followed."""

    mark: Mark
    until: float


class Traces:
    """Marks calls, where this process stores ratings, and follows marks, where it archives them."""

    def __init__(self, keys: Keys, client: Client, stream: RatingsStream, tracing: Tracing) -> None:
        self._key = keys.traces
        self._client = client
        self._stream = stream
        self._tracing = tracing
        self._batches: deque[_Batch] = deque(maxlen=_BATCHES)
        # By epoch and partition, where the last batch ended.
        self._reached: dict[tuple[int, int], tuple[int, int]] = {}
        self._followed: deque[_Followed] = deque(maxlen=MOST_MARKS)

    async def mark(self, epoch: int, partitions: Iterable[int]) -> None:
        """Mark the call of this task, whose ratings were stored just now. Raises nothing."""
        carried = self._tracing.carried()
        if carried is None:
            return
        try:
            progress = await self._stream.progress(epoch)
            mark = Mark(carried, epoch, {p: progress[p].last for p in set(partitions)})
            packed = msgspec.msgpack.encode(mark)
            await self._client.xadd(self._key, {_FIELD: packed}, maxlen=MOST_MARKS, approximate=True)
        except (StoreError, KeyError) as exc:
            # The ratings are stored, be there a partition of which nothing is said.
            log.debug("a trace ends here reason=%s", exc)

    def archived(self, epoch: int, last: Mapping[int, tuple[int, int]], events: int, began_ns: int) -> None:
        """Note a batch that is archived and acknowledged now."""
        self._batches.append(_Batch(epoch, last, events, (began_ns, time.time_ns())))
        self._reached |= {(epoch, partition): end for partition, end in last.items()}

    async def follow(self) -> None:
        """Give each call that is marked from now on the spans of its batches; until cancelled."""
        place, loop = b"", asyncio.get_running_loop()
        while True:
            try:
                place = place or b"(%d" % (1000 * (await self._client.time())[0] - 1)
                entries: Any = await self._client.xrange(self._key, min=place, count=_READ_AT_ONCE)
            except StoreError as exc:
                log.debug("marks of traces wait reason=%s", exc)
                entries = []
            for entry, fields in entries:
                place = b"(" + entry
                try:
                    mark = msgspec.msgpack.decode(fields[_FIELD], type=Mark)
                except (KeyError, msgspec.MsgspecError):
                    # Of a later version, or damaged: no more than a span is lost.
                    continue
                self._followed.append(_Followed(mark, loop.time() + _GIVEN_UP_AFTER_S))
            for _ in range(len(self._followed)):
                followed = self._followed.popleft()
                if not self._told(followed.mark) and loop.time() < followed.until:
                    self._followed.append(followed)
            await asyncio.sleep(_LOOK_EVERY_S)

    def _told(self, mark: Mark) -> bool:
        """Add the spans of the batches that have all of a call; say whether there are such."""
        reached, epoch = self._reached, mark.epoch
        if any(reached.get((epoch, partition), (0, 0)) < end for partition, end in mark.ends.items()):
            return False
        found: dict[int, _Batch] = {}
        for partition, end in mark.ends.items():
            first = None
            # From the newest: marks come within seconds of their ratings.
            for batch in reversed(self._batches):
                if batch.epoch == epoch and partition in batch.last:
                    if batch.last[partition] < end:
                        break
                    first = batch
            if first is not None:
                found[first.times_ns[0]] = first
        for batch in found.values():
            self._tracing.consumed(
                mark.carried, "archive ratings", batch.times_ns, epoch=batch.epoch, events=batch.events
            )
        return True
