"""What the store keeps of a generation besides its tables, as values and as bytes. Invariant: what cannot be
read as written is `GenerationBroken`, never a guess.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Literal, TypeVar
from zlib import crc32

import msgspec

from factors import Link, Model, ModelUnreadable, from_bytes, to_bytes
from featurestore.errors import FULL_REASONS, FullReason, GenerationBroken
from featurestore.keys import record_field, shown_key, whole

# A lookup waits for one chunk at most: 64 KB take the store about 20 us, a quarter of a millisecond a
# megabyte.
CHUNK_BYTES = 65_536

# Names of blobs: the ranking head, and the index of its factors where there is one; how much items are rated,
# and what they have of positive events; how their attributes are encoded, and those of users.
HEAD_WAITS = "head_waits"
"""Name of the figure, 1, of a fit that went live before its ranking head."""

RANKING, RANKING_INDEX, ACTIVITY, ATTRIBUTES = "ranking", "ranking_index", "activity", "attributes"
USER_ATTRIBUTES, POSITIVES = "user_attributes", "positives"

# Of summary, meta, tables and records. Grows when an older version could not read them.
FORMAT = 1

T = TypeVar("T")
Text = bytes | str
"""What redis-py's types say that it returns. Without `decode_responses` it is bytes."""


@dataclass(frozen=True, slots=True)
class Pointer:
    """What is live. `generation` 0: none yet. `previous`: the one to roll back to (0: none).

    `held`: automatic refits do not go live. `pending`: the epoch that is being prepared (0: none), since
    `pending_since` by the store's clock, seconds since 1970, by `pending_by` ("" for a call that is over with
    its process). `full`: what has no room left, as the leader believes until `full_until` by the same clock.
    `last_epoch`: the highest that was given. `taking_over`: the epoch that has gone live, while ratings still
    go to the one before too (0: none).
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
    taking_over: int = 0

    @property
    def only_epoch(self) -> int | None:
        """The epoch that alone may be served: any other has ended, or is about to. None while the one before
        may be served too, to which ratings go as well.
        """
        return None if self.pending == self.epoch != self.taking_over else self.epoch

    def full_at(self, now: float) -> FullReason | None:
        """Return what has no room left at `now`, by the store's clock."""
        return self.full if now < self.full_until else None


@dataclass(frozen=True, slots=True)
class Blob:
    """Bytes that lie beside the item table: `size` of them from chunk `first` on, with their CRC-32."""

    first: int
    size: int
    crc32: int

    @property
    def chunk_bytes(self) -> list[int]:
        """The bytes of each chunk."""
        return [min(CHUNK_BYTES, self.size - start) for start in range(0, self.size, CHUNK_BYTES)]


@dataclass(frozen=True, slots=True)
class GenerationSummary:
    """One line of the list of generations. The functions of the store read `epoch` and `state`.

    `index_chunks`: in the list, of all that lies beside the item table; in a meta, of the index alone.
    """

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
    format: int = FORMAT


@dataclass(frozen=True, slots=True)
class GenerationMeta:
    """What a reader needs to load a generation.

    `crc32` is that of the item table's bytes, `item_rows` rows of it. `index_bytes` with `index_crc32`: the
    index of the items, 0 where there is none. `blobs`: what else lies beside the table, by name.
    """

    summary: GenerationSummary
    positions: dict[int, str]
    item_rows: int
    rows_per_chunk: int
    crc32: int
    model: Model
    index_bytes: int = 0
    index_crc32: int = 0
    blobs: dict[str, Blob] = field(default_factory=dict)

    @property
    def index(self) -> Blob:
        """The index of the items; of no bytes where there is none."""
        return Blob(0, self.index_bytes, self.index_crc32)


@dataclass(frozen=True, slots=True)
class Worker:
    """The heartbeat of a service process; `age_s` by the store's clock. `experiments`: the version of the
    experiments that it follows.
    """

    id: str
    epoch: int
    generation: int
    pid: int
    age_s: float
    experiments: str = ""


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


# The last field: the checksum of the text without it.
_CHECK = b',"check":'


class _Meta(msgspec.Struct, frozen=True):
    summary: GenerationSummary
    positions: dict[int, str]
    item_rows: int
    rows_per_chunk: int
    crc32: int
    # Base64 in JSON. Only `factors` knows what is in it.
    model: bytes
    index_bytes: int
    index_crc32: int
    blobs: dict[str, Blob]


class _Format(msgspec.Struct, frozen=True):
    format: int


class _Summary(msgspec.Struct, frozen=True):
    summary: msgspec.Raw


class Beat(msgspec.Struct, frozen=True):
    """A heartbeat as it is stored; `at`: seconds since 1970 by the store's clock."""

    generation: int
    epoch: int
    at: float
    pid: int
    experiments: str = ""


def read_pointer(fields: Mapping[bytes, bytes] | Mapping[Text, Text], key: bytes) -> Pointer:
    """The pointer from the fields of its hash, which is at `key`. Raises `StoreDamaged`."""

    # A new namespace has an epoch only; each other field comes with what it says.
    def number(name: bytes) -> int:
        return whole(fields.get(name, b"0"), key)

    full, _, until = _text(fields.get(b"full")).partition(":")
    return Pointer(
        epoch=number(b"epoch"),
        generation=number(b"generation"),
        fence=number(b"fence"),
        held=fields.get(b"held") == b"1",
        previous=number(b"previous"),
        pending=number(b"pending"),
        # Seconds of the store's clock, as `TIME` has them.
        pending_since=float(number(b"pending_since")),
        # A leader of another version may know of more that can be full.
        full=next((reason for reason in FULL_REASONS if reason == full), "store_disk") if full else None,
        full_until=float(until) if until.isdigit() else 0.0,
        last_epoch=number(b"last_epoch"),
        pending_by=_text(fields.get(b"pending_by")),
        taking_over=number(b"taking_over"),
    )


def _text(value: Text | None) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value or ""


def decode_summary(text: Text, key: bytes) -> GenerationSummary:
    """A summary from JSON, which is at `key`. Raises `GenerationBroken`."""
    _require_format(text, key)
    try:
        return msgspec.json.decode(text, type=GenerationSummary)
    except (msgspec.MsgspecError, UnicodeDecodeError) as exc:
        raise GenerationBroken(f"the summary of a generation cannot be read: {exc}", shown_key(key)) from exc


def _read(text: Text, kind: type[T], key: bytes) -> T:
    try:
        return msgspec.json.decode(text, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as exc:
        raise GenerationBroken(f"it cannot be read: {exc}", shown_key(key)) from exc


def _require_format(summary: Text, key: bytes) -> None:
    """Raises `GenerationBroken` for the summary of another format, whatever else is in it."""
    number = _read(summary, _Format, key).format
    if number != FORMAT:
        raise GenerationBroken(
            f"a generation has format {number}, this version reads {FORMAT}: use the version that wrote it",
            shown_key(key),
        )


def encode_meta(meta: GenerationMeta) -> bytes:
    """What a generation is, as JSON."""
    stored = {each.name: getattr(meta, each.name) for each in fields(meta)}
    text = msgspec.json.encode(stored | {"model": to_bytes(meta.model)})
    return b"%b%b%d}" % (text[:-1], _CHECK, crc32(text))


def decode_meta(text: Text, key: bytes) -> GenerationMeta:
    """What a generation is, from what is at `key`. Raises `GenerationBroken`."""
    data = text.encode() if isinstance(text, str) else text
    body, found, check = data.rpartition(_CHECK)
    if found and check != b"%d}" % crc32(body + b"}"):
        raise GenerationBroken("it does not have its checksum", shown_key(key))
    _require_format(bytes(_read(data, _Summary, key).summary), key)
    if not found:
        raise GenerationBroken("it does not have its checksum", shown_key(key))
    read = _read(data, _Meta, key)
    try:
        model = from_bytes(read.model)
    except (UnicodeDecodeError, ModelUnreadable) as exc:
        raise GenerationBroken(f"it cannot be read: {exc}", shown_key(key)) from exc
    # Before any chunk is asked for: a reader makes as many names as these numbers say.
    if (
        read.item_rows < 0
        or read.rows_per_chunk < 1
        or read.summary.chunks != len(range(0, read.item_rows, read.rows_per_chunk))
        or read.summary.index_chunks != len(range(0, read.index_bytes, CHUNK_BYTES))
        or any(blob.first < 0 or blob.size < 1 for blob in read.blobs.values())
    ):
        raise GenerationBroken("it does not count its chunks right", shown_key(key))
    return GenerationMeta(**(msgspec.structs.asdict(read) | {"model": model}))


def decode_beat(worker_id: bytes, text: Text, now: float) -> Worker | None:
    """A heartbeat; None for one that cannot be read."""
    try:
        beat = msgspec.json.decode(text, type=Beat)
    except msgspec.MsgspecError:
        # One worker that writes it otherwise must not hide the others.
        return None
    name, age_s = worker_id.decode("utf-8", "replace"), now - beat.at
    return Worker(name, beat.epoch, beat.generation, beat.pid, age_s, beat.experiments)
