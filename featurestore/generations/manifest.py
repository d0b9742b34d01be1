"""What the store keeps of a generation besides its tables, as values and as bytes. Invariant: what cannot be
read as written is `GenerationBroken`, never a guess.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Literal

import msgspec
import numpy as np

from factors import Float32s, Int32s, Link, Model, ModelUnreadable, from_bytes, to_bytes
from featurestore.errors import FULL_REASONS, FullReason, GenerationBroken
from featurestore.keys import record_field

# A lookup waits for one chunk at most: 64 KB take the store about 20 us, a quarter of a millisecond a
# megabyte.
CHUNK_BYTES = 65_536

Text = bytes | str
"""What redis-py's types say that it returns. Without `decode_responses` it is bytes."""


@dataclass(frozen=True, slots=True)
class Pointer:
    """What is live. `generation` 0: none yet. `previous`: the one to roll back to (0: none).

    `held`: automatic refits do not go live. `pending`: the epoch that is being prepared (0: none), since
    `pending_since` by the store's clock, seconds since 1970, by `pending_by` ("" for a call that is over with
    its process). `full`: what has no room left, as the leader believes until `full_until` by the same clock.
    `last_epoch`: the highest that was given.
    """

    epoch: int
    generation: int
    fence: int
    held: bool
    previous: int
    pending: int
    pending_since: float
    full: FullReason | None = None
    full_until: float = 0.0
    last_epoch: int = 0
    pending_by: str = ""

    def full_at(self, now: float) -> FullReason | None:
        """Return what has no room left at `now`, by the store's clock."""
        return self.full if now < self.full_until else None


@dataclass(frozen=True, slots=True)
class GenerationSummary:
    """One line of the list of generations. The functions of the store read `epoch` and `state`."""

    generation: int
    epoch: int
    # A function that retires a generation replaces this in the text: a word, behind `"state":`.
    state: Literal["writing", "ready", "removing"]
    created: float
    rank: int
    link: Link
    engine: str
    n_users: int
    n_items: int
    n_ratings: int
    metrics: dict[str, float]
    chunks: int = 0
    index_chunks: int = 0


@dataclass(frozen=True, slots=True)
class GenerationMeta:
    """What a reader needs to load a generation.

    `crc32` is that of the item table's bytes, `item_rows` rows of it. `index_bytes` with `index_crc32`: the
    index of the items, 0 where there is none.
    """

    summary: GenerationSummary
    positions: dict[int, str]
    item_rows: int
    rows_per_chunk: int
    crc32: int
    model: Model
    index_bytes: int = 0
    index_crc32: int = 0


@dataclass(frozen=True, slots=True)
class Deltas:
    """Item rows folded in since the fit, each once: `rows` int32 (m,), `vectors` float32 (m, item_width).

    `after`: the stream id to go on from.
    """

    rows: Int32s
    vectors: Float32s
    after: str


@dataclass(frozen=True, slots=True)
class Worker:
    """The heartbeat of a service process; `age_s` by the store's clock."""

    id: str
    epoch: int
    generation: int
    pid: int
    age_s: float


@dataclass(frozen=True)
class Kept:
    """Which generations there are."""

    # The two texts are made once, not for each record that is written back.
    numbers: frozenset[int]

    @cached_property
    def upto(self) -> int:
        """The highest number. Numbers only grow: a higher one is newer than this."""
        return max(self.numbers, default=0)

    @cached_property
    def fields(self) -> bytes:
        """The fields of their records."""
        return b",".join(map(record_field, sorted(self.numbers)))


class _Meta(msgspec.Struct, frozen=True):
    summary: GenerationSummary
    positions: dict[int, str]
    item_rows: int
    rows_per_chunk: int
    crc32: int
    # Base64 in JSON. Only `factors` knows what is in it.
    model: bytes
    index_bytes: int = 0
    index_crc32: int = 0


class Beat(msgspec.Struct, frozen=True):
    """A heartbeat as it is stored; `at`: seconds since 1970 by the store's clock."""

    generation: int
    epoch: int
    at: float
    pid: int


def read_pointer(fields: Mapping[Text, Text]) -> Pointer:
    """The pointer from the fields of its hash."""

    # A new namespace has an epoch only; each other field comes with what it says.
    def number(name: bytes) -> int:
        return int(fields.get(name) or 0)

    full, _, until = _text(fields.get(b"full")).partition(":")
    return Pointer(
        epoch=number(b"epoch"),
        generation=number(b"generation"),
        fence=number(b"fence"),
        held=fields.get(b"held") == b"1",
        previous=number(b"previous"),
        pending=number(b"pending"),
        pending_since=float(fields.get(b"pending_since") or 0.0),
        # A leader of another version may know of more that can be full.
        full=next((reason for reason in FULL_REASONS if reason == full), "store_disk") if full else None,
        full_until=float(until) if until.isdigit() else 0.0,
        last_epoch=number(b"last_epoch"),
        pending_by=_text(fields.get(b"pending_by")),
    )


def _text(value: Text | None) -> str:
    return value.decode() if isinstance(value, bytes) else value or ""


def decode_summary(text: Text) -> GenerationSummary:
    """A summary from JSON. Raises `GenerationBroken`."""
    try:
        return msgspec.json.decode(text, type=GenerationSummary)
    except msgspec.MsgspecError as exc:
        raise GenerationBroken(f"the summary of a generation cannot be read: {exc}") from exc


def encode_meta(meta: GenerationMeta) -> bytes:
    """What a generation is, as JSON."""
    stored = {each.name: getattr(meta, each.name) for each in fields(meta)}
    return msgspec.json.encode(stored | {"model": to_bytes(meta.model)})


def decode_meta(text: Text) -> GenerationMeta:
    """What a generation is. Raises `GenerationBroken`."""
    try:
        read = msgspec.json.decode(text, type=_Meta)
        model = from_bytes(read.model)
    except (msgspec.MsgspecError, ModelUnreadable) as exc:
        raise GenerationBroken(f"what a generation is cannot be read: {exc}") from exc
    # Before any chunk is asked for: a reader makes as many names as these numbers say.
    if (
        read.item_rows < 0
        or read.rows_per_chunk < 1
        or read.summary.chunks != len(range(0, read.item_rows, read.rows_per_chunk))
        or read.summary.index_chunks != len(range(0, read.index_bytes, CHUNK_BYTES))
    ):
        raise GenerationBroken(f"generation {read.summary.generation} does not count its chunks right")
    return GenerationMeta(**(msgspec.structs.asdict(read) | {"model": model}))


def decode_beat(worker_id: bytes, text: Text, now: float) -> Worker | None:
    """A heartbeat; None for one that cannot be read."""
    try:
        beat = msgspec.json.decode(text, type=Beat)
    except msgspec.MsgspecError:
        # One worker that writes it otherwise must not hide the others.
        return None
    return Worker(worker_id.decode("utf-8", "replace"), beat.epoch, beat.generation, beat.pid, now - beat.at)


def decode_deltas(entries: Sequence[tuple[bytes, Mapping[bytes, bytes]]], width: int, after: str) -> Deltas:
    """Stream entries as deltas: of a row that came more than once the last.

    Raises `GenerationBroken` where rows and vectors do not fit.
    """
    rows: list[Int32s] = []
    vectors: list[Float32s] = []
    for _, delta in entries:
        some_rows, some_vectors = delta.get(b"r", b""), delta.get(b"v", b"")
        count = len(some_rows) // 4
        if len(some_rows) != 4 * count or len(some_vectors) != 4 * count * width:
            raise GenerationBroken("a delta of the item table has the wrong length")
        rows.append(np.frombuffer(some_rows, dtype="<i4"))
        vectors.append(np.frombuffer(some_vectors, dtype="<f4").reshape(count, width))
    if entries:
        after = entries[-1][0].decode()
    if not rows:
        return Deltas(np.empty(0, np.int32), np.empty((0, width), np.float32), after)
    every, vector = np.concatenate(rows), np.concatenate(vectors)
    # Of a row that came more than once `unique` finds the first from behind: the last.
    kept, last = np.unique(every[::-1], return_index=True)
    return Deltas(kept, vector[len(every) - 1 - last], after)
