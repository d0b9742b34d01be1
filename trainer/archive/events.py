"""Rating events as columns. Invariant: a table of events is ordered within each partition by its stream id.

The columns of an archived event are those of `SCHEMA`. `n` is the user's own count: of two events of a pair
the one with the higher `n` is the later one. A NaN rating takes the pair back.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

SCHEMA = pa.schema(
    [
        pa.field("partition", pa.uint16(), nullable=False),
        pa.field("stream_ms", pa.int64(), nullable=False),
        pa.field("stream_seq", pa.int64(), nullable=False),
        pa.field("user_id", pa.string(), nullable=False),
        pa.field("n", pa.int64(), nullable=False),
        pa.field("item_row", pa.uint32(), nullable=False),
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("rating", pa.float64(), nullable=False),
        pa.field("time", pa.float64(), nullable=False),
    ]
)

Position = tuple[int, int]
"""Where an event is in its stream: milliseconds, then its number among all events of the stream."""

# Before every event: the numbers of a stream begin at 1.
START: Position = (0, 0)


def parse_position(stream_id: str | bytes) -> Position:
    """Return `ms-seq` as a position."""
    text = stream_id.decode() if isinstance(stream_id, bytes) else stream_id
    ms, _, seq = text.partition("-")
    return int(ms), int(seq or 0)


def format_position(position: Position) -> str:
    """Return a position as `ms-seq`, the form of a stream id."""
    return f"{position[0]}-{position[1]}"


@dataclass(frozen=True, slots=True)
class Span:
    """What a segment covers of one partition's stream: `events` of them, from `first` to `last`.

    `events` counts what stood in the stream, so also the marks of forgotten users, which leave no row.
    """

    first: Position
    last: Position
    events: int

    def joined(self, later: "Span") -> "Span":
        """Return this span and one that follows it as one."""
        return Span(min(self.first, later.first), max(self.last, later.last), self.events + later.events)


Spans = Mapping[int, Span]


def join_spans(spans: Iterable[Spans]) -> dict[int, Span]:
    """Return the spans of consecutive segments as one."""
    joined: dict[int, Span] = {}
    for each in spans:
        for partition, span in each.items():
            before = joined.get(partition)
            joined[partition] = span if before is None else before.joined(span)
    return joined


def string_array(values: Iterable[bytes]) -> pa.StringArray:
    """Return ids as an Arrow string array.

    They are not checked again: the service has, and a trainer that stopped at one would stop the stream.
    """
    return pa.array(list(values), type=pa.binary()).view(pa.string())


def make_table(
    *,
    partition: npt.ArrayLike,
    stream_ms: npt.ArrayLike,
    stream_seq: npt.ArrayLike,
    user_id: pa.StringArray,
    n: npt.ArrayLike,
    item_row: npt.ArrayLike,
    item_id: pa.StringArray,
    rating: npt.ArrayLike,
    time: npt.ArrayLike,
) -> pa.Table:
    """Return columns of equal length as a table of `SCHEMA`."""
    # Through numpy: no Python object for each number.
    columns = {
        "partition": np.asarray(partition, dtype=np.uint16),
        "stream_ms": np.asarray(stream_ms, dtype=np.int64),
        "stream_seq": np.asarray(stream_seq, dtype=np.int64),
        "user_id": user_id,
        "n": np.asarray(n, dtype=np.int64),
        "item_row": np.asarray(item_row, dtype=np.uint32),
        "item_id": item_id,
        "rating": np.asarray(rating, dtype=np.float64),
        "time": np.asarray(time, dtype=np.float64),
    }
    return pa.table([pa.array(columns[name]) for name in SCHEMA.names], schema=SCHEMA)


def spans_of(
    partition: npt.NDArray[np.uint16], stream_ms: npt.NDArray[np.int64], stream_seq: npt.NDArray[np.int64]
) -> dict[int, Span]:
    """Return the spans of events that are ordered within each partition."""
    spans: dict[int, Span] = {}
    for number in np.unique(partition):
        rows = np.flatnonzero(partition == number)
        first, last = rows[0], rows[-1]
        spans[int(number)] = Span(
            (int(stream_ms[first]), int(stream_seq[first])),
            (int(stream_ms[last]), int(stream_seq[last])),
            len(rows),
        )
    return spans


def without_user(table: pa.Table, user_id: bytes, up_to_n: int) -> pa.Table:
    """Return `table` without the events of a user up to and including `up_to_n`."""
    wanted = string_array([user_id])[0]
    gone = pc.and_(
        pc.equal(table["user_id"], wanted), pc.less_equal(table["n"], pa.scalar(up_to_n, pa.int64()))
    )
    return table.filter(pc.invert(gone))
