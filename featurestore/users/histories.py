"""Reads the histories of users. Invariant: no reply of the store has more than `ANSWER_ENTRIES` of a history,
and what is put together of several is what the history was at one moment.

Beside a longer history stands a sample of it (field `sample` of the user): `n` when it was taken, by how
much that exceeded the entries of the history, beyond how many entries it is to be read whole again, and the
entries of the items of lowest `sample_order`. With the entries that came since, it has every rating that
counts for the user's record (`factors/inference/histories.py`), and one that was replaced or taken back
since is known to be: its entry is there, unless the history was compacted, and then `n` exceeds its entries
by more. So a rating costs the same, however many there are already.

Where events of other types stand among the ratings, the latest entries may all be views. So the sample then
has the latest ratings and the latest events too, as many as count of each, and a mark that it has.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from factors import RECENT, SAMPLED, Int32s, Int64s, sample_order
from featurestore import codecs
from featurestore.codecs import ENTRY_BYTES, History
from featurestore.contexts.codec import LEAST_BYTES
from featurestore.errors import StoreUnavailable
from featurestore.keys import Keys, whole
from featurestore.wire.connection import Connection
from featurestore.wire.functions import ask_many, call_many, encode_call
from featurestore.wire.resp import ReplyError

# 60 KB, which the store copies in some 10 microseconds; what came since a sample fits, and the latest that
# count.
ANSWER_ENTRIES = 3 * RECENT
# As many of the latest contexts where there are 32 fields, 442 KB; fewer with those that were deleted.
ANSWER_CONTEXT_BYTES = ANSWER_ENTRIES * (LEAST_BYTES + 4 * 32)
# Seldom enough to be no work beside the ratings, often enough that the entries since are few.
RENEW_EVENTS = RECENT
# Half of them may be among the latest, or taken back, before others would be wanted in their place.
SAMPLE_ENTRIES = 2 * SAMPLED
# Replies in one write: others have their turn every 1 MB.
PIECES_AT_ONCE = 16
# A history is compacted under a reader once in a great while.
ATTEMPTS = 4
# Calls in one write to the store, so that other lookups get their turn.
CALLS_AT_ONCE = 256
_HEAD = struct.Struct("<QqQ")
# The first entry of a sample of ratings and events: as one that was taken back, it is in no history.
_WITH_EVENTS = codecs.pack_entry(codecs.FORGOTTEN_ROW, float("nan"), 0.0, codecs.MAX_TYPE_CODE)


@dataclass(frozen=True, slots=True)
class Look:
    """What was read of a user at one moment: `n` (None: unknown), the record, the end of the history, how
    many bytes it has in all (`size`), the stored sample, and, where they were asked for, the attributes as
    they are stored (empty: none) and since when (`described`) they are these; the end of the contexts, and
    how many bytes these have in all.
    """

    n: int | None
    record: bytes | None
    tail: bytes
    size: int
    sample: bytes | None = None
    attributes: bytes | None = None
    described: bytes = b""
    contexts: bytes = b""
    contexts_size: int = 0

    @property
    def state(self) -> tuple[bytes | None, bytes | None]:
        """`n` and record, as the counter rule reads them."""
        return (None if self.n is None else b"%d" % self.n), self.record

    @property
    def whole(self) -> bool:
        """Whether `tail` is all of the history."""
        return len(self.tail) == self.size

    @property
    def complete(self) -> bool:
        """Whether all of the history is there, and all of its contexts."""
        return self.whole and len(self.contexts) == self.contexts_size

    @property
    def entries(self) -> int:
        """How many entries there are in all."""
        return self.size // ENTRY_BYTES

    @property
    def missing(self) -> int:
        """By how much `n` exceeds the entries: a compaction and being forgotten change it, events do not."""
        return (self.n or 0) - self.entries

    @property
    def part(self) -> bytes | None:
        """Entries, of which all count that a record rests on; None where more has to be read for that."""
        if self.whole:
            return self.tail
        n, missing, due = self._sampled()
        since = (self.n or 0) - n
        follows = missing == self.missing and 0 <= since * ENTRY_BYTES <= len(self.tail)
        if not follows or self.entries > due:
            return None
        sampled = (self.sample or b"")[_HEAD.size :]
        if not sampled.startswith(_WITH_EVENTS) and codecs.has_events(self.tail):
            # The sample is of ratings alone, and lacks the latest of them.
            return None
        return sampled + self.tail

    @property
    def renews(self) -> bool:
        """Whether a new sample is to be stored."""
        if self.whole:
            return self.entries > ANSWER_ENTRIES
        return (self.n or 0) - self._sampled()[0] >= RENEW_EVENTS

    @property
    def due(self) -> int:
        """Beyond how many entries the stored sample has the history read whole again."""
        return self._sampled()[2]

    def _sampled(self) -> tuple[int, int, int]:
        # One of another length is damaged, or of another version: as if there was none.
        if self.sample is None or len(self.sample) % ENTRY_BYTES != _HEAD.size % ENTRY_BYTES:
            return 0, 0, 0
        n, missing, due = _HEAD.unpack_from(self.sample)
        return n, missing, due


def due_after(entries: int, ratings: int) -> int:
    """Beyond how many entries a history is to be read whole again that was read with so many `entries`, of
    which `ratings` held: it may be worth compacting then, as more than a half may be superseded.
    """
    # A rating that is taken back adds two that do not hold, one that is replaced adds one. An eighth more at
    # least, so that reading it is little beside writing it.
    return entries + max((2 * ratings - entries) // 3, entries // 8)


def pack_sample(n: int, missing: int, due: int, history: History, with_events: bool = False) -> bytes:
    """The sample of a history; see above, and `Look`. `with_events`: there are, or were, such among its
    entries.
    """
    latest = RECENT if with_events else 0
    ratings = _sampled(history.item_row, latest)
    events = _sampled(history.feedback.item_row, latest)
    mark = _WITH_EVENTS if with_events else b""
    return _HEAD.pack(n, missing, due) + mark + codecs.pack_history(history.only(ratings, events))


def _sampled(item_row: Int32s, latest: int) -> Int64s:
    """Return the positions of the `latest` entries and of those of the lowest `sample_order`, ascending."""
    order = np.argsort(sample_order(item_row), kind="stable")
    last = np.arange(max(0, len(item_row) - latest), len(item_row))
    return np.union1d(order[:SAMPLE_ENTRIES], last).astype(np.int64)


class HistoryReader:
    """Safe for any number of tasks of one event loop; every method may raise `StoreUnavailable`, and
    `StoreDamaged` of what is stored of a user.
    """

    def __init__(self, keys: Keys, connection: Connection) -> None:
        self._keys = keys
        self._connection = connection

    async def look(self, epoch: int, field: bytes, user_id: bytes, *, attributes: bool = False) -> Look:
        """Look at one user, and at the attributes if wanted. Raises `StoreError`."""
        (reply,) = await call_many(self._connection, [self.call(epoch, field, user_id, attributes)])
        return self.look_of(epoch, user_id, reply)

    async def look_many(
        self, epoch: int, field: bytes, user_ids: Sequence[bytes], *, attributes: bool = False
    ) -> list[Look | ReplyError]:
        """Look at users, errors in their place."""
        found: list[Look | ReplyError] = []
        for start in range(0, len(user_ids), CALLS_AT_ONCE):
            some = user_ids[start : start + CALLS_AT_ONCE]
            replies = await ask_many(
                self._connection, [self.call(epoch, field, user_id, attributes) for user_id in some]
            )
            found += [
                reply if isinstance(reply, ReplyError) else self.look_of(epoch, user_id, reply)
                for user_id, reply in zip(some, replies, strict=True)
            ]
        return found

    async def with_part(self, epoch: int, field: bytes, user_id: bytes, look: Look) -> Look:
        """A look, this one or a later one, that has a `part`."""
        # Of a whole history all contexts are wanted, too: it may be compacted, and they are with it.
        enough = look.complete if look.whole else look.part is not None
        return look if enough else await self.with_all(epoch, field, user_id, look)

    async def with_all(self, epoch: int, field: bytes, user_id: bytes, look: Look) -> Look:
        """A look, this one or a later one, with the whole history in its `tail`, and all contexts."""
        for _ in range(ATTEMPTS):
            if look.complete:
                return look
            before = await self._before(epoch, user_id, look)
            if before is not None:
                entries, contexts = before
                return replace(look, tail=entries + look.tail, contexts=contexts + look.contexts)
            look = await self.look(epoch, field, user_id, attributes=look.attributes is not None)
        raise StoreUnavailable("the history of a user is being rewritten just now", 0.1)

    async def _before(self, epoch: int, user_id: bytes, look: Look) -> tuple[bytes, bytes] | None:
        """What stands before the tail of `look`, and before its contexts; None where the history, which is
        compacted together with its contexts, is no longer the one it was.
        """
        names = [self._keys.user(epoch, user_id), self._keys.history(epoch, user_id)]
        step, found = ANSWER_ENTRIES * ENTRY_BYTES, list[bytes]()
        for key, stop in (
            (names[1], look.size - len(look.tail)),
            (self._keys.user_contexts(epoch, user_id), look.contexts_size - len(look.contexts)),
        ):
            calls = [
                encode_call("look_at", [*names, key], [b"%d" % start, b"%d" % (min(start + step, stop) - 1)])
                for start in range(0, stop, step)
            ]
            pieces: list[bytes] = []
            for start in range(0, len(calls), PIECES_AT_ONCE):
                some = calls[start : start + PIECES_AT_ONCE]
                for n, size, piece in await call_many(self._connection, some):
                    if int(n or 0) - size // ENTRY_BYTES != look.missing:
                        return None
                    pieces.append(piece)
            found.append(b"".join(pieces))
        return found[0], found[1]

    def call(self, epoch: int, field: bytes, user_id: bytes, attributes: bool) -> bytes:
        """Return the call whose reply `look_of` reads, as RESP."""
        keys = self._keys
        names = [keys.user(epoch, user_id), keys.history(epoch, user_id), keys.user_contexts(epoch, user_id)]
        if attributes:
            names.append(keys.attributes(user_id))
        most = [b"%d" % ANSWER_ENTRIES, b"%d" % RECENT, b"%d" % ANSWER_CONTEXT_BYTES]
        return encode_call("look", names, [field, *most])

    def look_of(self, epoch: int, user_id: bytes, reply: Any) -> Look:
        """Return what the store says of a user. Raises `StoreDamaged`."""
        n, record, tail, size, sample, contexts, contexts_size, *described = reply
        count = None if n is None else whole(n, self._keys.user(epoch, user_id))
        since, attributes = described or (b"", None)
        read = (count, record, tail or b"", size, sample, attributes, since)
        return Look(*read, contexts=contexts, contexts_size=contexts_size)
