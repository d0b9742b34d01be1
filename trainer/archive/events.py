"""Rating events as columns. Invariant: a table of events is ordered within each partition by its stream id.

The columns of an archived event are those of `SCHEMA`. A pair is a user with an item and a type of events,
`type_code`, 0 for a rating. `n` is the user's own count: of two events of a pair the one with the higher `n`
is the later one. A NaN rating takes the pair back. A table in which any event has a context has one more
column (`featurestore/contexts/codec.py`).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from factors import Bools, Float32s, Int32s, UInt8s
from featurestore.codecs import FORGOTTEN_ROW
from featurestore.contexts.codec import pack_cells, trimmed, unpack_cells
from featurestore.ratings.stream import Events

SCHEMA = pa.schema(
    [
        pa.field("partition", pa.uint16(), nullable=False),
        pa.field("stream_ms", pa.int64(), nullable=False),
        pa.field("stream_seq", pa.int64(), nullable=False),
        pa.field("user_id", pa.string(), nullable=False),
        pa.field("n", pa.int64(), nullable=False),
        pa.field("item_row", pa.uint32(), nullable=False),
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("type_code", pa.uint8(), nullable=False),
        pa.field("rating", pa.float64(), nullable=False),
        pa.field("time", pa.float64(), nullable=False),
    ]
)

CONTEXT = pa.field("context", pa.binary())

Position = tuple[int, int]
"""Where an event is in its stream: milliseconds, then its number among all events of the stream."""

# Before every event: the numbers of a stream begin at 1.
START: Position = (0, 0)
# The columns that say whether an erasure takes an event.
ERASED_BY = ("user_id", "partition", "stream_ms", "stream_seq")
# Every event came in before this time, in milliseconds.
ALWAYS = 2**62


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


Spans = Mapping[int, Span]


@dataclass(frozen=True, slots=True)
class Rows:
    """Events that are read some at a time, as often as is wanted: all together may be more than what is free.
    `read(names)` yields them in their order, as tables with these of the columns of `schema`, cut alike each
    time; `count`: how many they are.
    """

    schema: pa.Schema
    read: Callable[[Sequence[str]], Iterator[pa.Table]]
    count: int

    @classmethod
    def of(cls, table: pa.Table) -> "Rows":
        """Return the rows of a table in memory."""
        return cls(table.schema, lambda names: iter([table.select(names)]), table.num_rows)

    @classmethod
    def joined(cls, several: "Sequence[Rows]") -> "Rows":
        """Return rows one behind the other; where one has contexts, the others have none of theirs."""
        told = [rows.schema for rows in several if CONTEXT.name in rows.schema.names]
        schema = told[0] if told else SCHEMA

        def read(names: Sequence[str]) -> Iterator[pa.Table]:
            for rows in several:
                # Of one column at least, so that it is known how many they are.
                known = [name for name in names if name in rows.schema.names]
                for part in rows.read(known or SCHEMA.names[:1]):
                    if CONTEXT.name in names and CONTEXT.name not in known:
                        none = pa.nulls(part.num_rows, CONTEXT.type)
                        yield part.append_column(CONTEXT, none).select(names)
                    else:
                        yield part.select(names)

        return cls(schema, read, sum(rows.count for rows in several))

    def filtered(self, masks: Sequence[pa.ChunkedArray]) -> "Rows":
        """Return those that the masks name, one for each of the tables as they are cut."""

        def read(names: Sequence[str]) -> Iterator[pa.Table]:
            for part, mask in zip(self.read(names), masks, strict=True):
                yield part.filter(mask)

        return Rows(self.schema, read, sum(pc.sum(mask).as_py() or 0 for mask in masks))

    def without_empty_context(self) -> "Rows":
        """Return the rows without the column of contexts where there is none in it."""
        if CONTEXT.name not in self.schema.names:
            return self
        if any(part[CONTEXT.name].null_count < part.num_rows for part in self.read([CONTEXT.name])):
            return self
        schema = self.schema.remove(self.schema.get_field_index(CONTEXT.name))
        return Rows(schema, self.read, self.count)


def join_spans(spans: Iterable[Spans]) -> dict[int, Span]:
    """Return the spans of consecutive segments as one."""
    joined: dict[int, Span] = {}
    for each in spans:
        for partition, span in each.items():
            before = joined.setdefault(partition, span)
            if before is not span:
                first, last = min(before.first, span.first), max(before.last, span.last)
                joined[partition] = Span(first, last, before.events + span.events)
    return joined


def string_array(values: Iterable[bytes]) -> pa.StringArray:
    """Return ids as an Arrow string array.

    They are not checked again: the service has, and a trainer that stopped at one would stop the stream.
    """
    return pa.array(list(values), type=pa.binary()).view(pa.string())


def codes_of(columns: Iterable[pa.ChunkedArray]) -> tuple[Int32s, pa.StringArray]:
    """Return the code of each id (m,) in columns one behind the other, and the ids by code."""
    chunks = [chunk for column in columns for chunk in column.dictionary_encode().chunks]
    if not chunks:
        return np.zeros(0, np.int32), pa.array([], type=pa.string())
    # Each column has codes of its own; afterwards the last chunk has all ids of all of them.
    chunks = pa.chunked_array(chunks).unify_dictionaries().chunks
    codes = [chunk.indices.to_numpy(zero_copy_only=False) for chunk in chunks]
    return np.concatenate(codes), chunks[-1].dictionary


def new_events(
    events: Events, item_ids: Sequence[bytes | None], positions: Mapping[int, Position]
) -> tuple[pa.Table, dict[bytes, int], dict[int, Span]]:
    """Return the events after `positions` as `without_marks` does, and the spans of these, marks included."""
    table = after(make_table(events, item_ids), positions)
    return *without_marks(table), spans_of(table)


def make_table(events: Events, item_ids: Sequence[bytes | None]) -> pa.Table:
    """Return events as a table of `SCHEMA`. `item_ids`: by item row; a row that it lacks has the empty id."""
    rows, index = np.unique(events.item_row, return_inverse=True)
    size = len(item_ids)
    ids = [item_ids[row] or b"" if row < size else b"" for row in rows.tolist()]
    # Through numpy: no Python object for each number.
    columns = {
        "partition": events.partition.astype(np.uint16),
        "stream_ms": events.stream_ms,
        "stream_seq": events.stream_seq,
        "user_id": string_array(events.users).take(pa.array(events.user)),
        "n": events.n,
        "item_row": events.item_row.astype(np.uint32),
        "item_id": string_array(ids).take(pa.array(index)),
        "type_code": events.type_code,
        "rating": events.rating,
        "time": events.time,
    }
    table = pa.table([pa.array(columns[name]) for name in SCHEMA.names], schema=SCHEMA)
    return table if events.context is None else with_contexts(table, events.context)


def with_contexts(table: pa.Table, context: Float32s) -> pa.Table:
    """Return a table without contexts with these (m, k); the same one where nothing is given in them."""
    data, ends = pack_cells(context)
    if not data:
        return table
    offsets = np.concatenate([[0], ends]).astype(np.int32)
    missing = np.diff(offsets) == 0
    valid = pa.array(~missing).buffers()[1]
    cells = pa.Array.from_buffers(
        pa.binary(), len(ends), [valid, pa.py_buffer(offsets), pa.py_buffer(data)], int(missing.sum())
    )
    return table.append_column(CONTEXT, cells)


def contexts_of(table: pa.Table) -> Float32s | None:
    """Return the contexts (m, k) of the events of a table; None where there are none.

    Raises `ValueError` for bytes that are no contexts.
    """
    return contexts_in(table[CONTEXT.name]) if CONTEXT.name in table.schema.names else None


def contexts_in(column: pa.ChunkedArray) -> Float32s | None:
    """Return the contexts (m, k) in a column of them; None where there are none. Raises as `contexts_of`."""
    sizes, data = [np.zeros(0, np.int64)], list[bytes]()
    # By their buffers: no Python object for each of millions.
    for chunk in column.chunks:
        _, offsets, content = chunk.buffers()
        ends = np.frombuffer(offsets, np.int32)[chunk.offset : chunk.offset + len(chunk) + 1]
        sizes.append(np.diff(ends).astype(np.int64))
        data.append(memoryview(content or b"")[ends[0] : ends[-1]].tobytes())
    return trimmed(unpack_cells(b"".join(data), np.cumsum(np.concatenate(sizes))))


def after(table: pa.Table, positions: Mapping[int, Position]) -> pa.Table:
    """Return the events of a table that lie after the positions of their partitions."""
    newer = lies_after(table, positions)
    return table if newer.all() else table.filter(pa.array(newer))


def lies_after(table: pa.Table, positions: Mapping[int, Position]) -> Bools:
    """Say of each event of a table (m,) whether it lies after the position of its partition."""
    partition = table["partition"].to_numpy()
    ms, seq = table["stream_ms"].to_numpy(), table["stream_seq"].to_numpy()
    # Indexed by partition, which the archive keeps as 16 bits.
    last_ms, last_seq = np.full(1 << 16, -1), np.full(1 << 16, -1)
    for number, position in positions.items():
        last_ms[number], last_seq[number] = position
    newer: Bools = (ms > last_ms[partition]) | ((ms == last_ms[partition]) & (seq > last_seq[partition]))
    return newer


def spans_of(table: pa.Table) -> dict[int, Span]:
    """Return the spans of a table of events."""
    partition, ms, seq = (table[name].to_numpy() for name in ("partition", "stream_ms", "stream_seq"))
    spans: dict[int, Span] = {}
    for number in np.unique(partition).tolist():
        rows = np.flatnonzero(partition == number)
        first, last = ((int(ms[row]), int(seq[row])) for row in rows[[0, -1]])
        spans[number] = Span(first, last, len(rows))
    return spans


def in_registry(table: pa.Table, item_ids: pa.StringArray) -> pa.Table:
    """Return the events of items that the registry has, with their rows there. `item_ids`: by item row.

    An archived row is that of the registry when the event came in: where a store has lost its end and gone
    on, it may have been given to another item since.
    """
    codes, ids = codes_of([table["item_id"]])
    rows = pc.index_in(ids, value_set=item_ids).take(pa.array(codes))
    position = table.schema.get_field_index("item_row")
    found = rows.fill_null(0).cast(pa.uint32())
    table = table.set_column(position, SCHEMA.field("item_row"), found)
    return table.filter(rows.is_valid()) if rows.null_count else table


def type_codes(table: pa.Table) -> UInt8s:
    """Return the code of the type of each event (m,); 0 is a rating."""
    codes: UInt8s = table["type_code"].to_numpy()
    return codes


def without_marks(table: pa.Table) -> tuple[pa.Table, dict[bytes, int]]:
    """Return the events of a table without the marks of forgotten users, and when each was forgotten."""
    is_mark = pc.equal(table["item_row"], pa.scalar(FORGOTTEN_ROW, pa.uint32()))
    marks = table.filter(is_mark)
    users, at_ms = marks["user_id"].cast(pa.binary()).to_pylist(), marks["stream_ms"].to_pylist()
    return table.filter(pc.invert(is_mark)) if users else table, dict(zip(users, at_ms, strict=True))


def ratings_of(table: pa.Table) -> pa.Table:
    """Return the events of a table that are ratings."""
    codes = type_codes(table)
    return table.filter(pa.array(codes == 0)) if codes.any() else table


def not_of_users(
    table: pa.Table, before_ms: Mapping[bytes, int], until: Mapping[int, Position] | None = None
) -> pa.ChunkedArray:
    """Return the mask of all events but those that users had before a time of the store, `ALWAYS` for all of
    a user's; of those only what does not lie after the positions `until`. `table`: with the columns
    `ERASED_BY` at least.
    """
    place = pc.index_in(table["user_id"], value_set=string_array(list(before_ms)))
    limit = pc.take(pa.array(list(before_ms.values()), pa.int64()), place)
    gone = pc.fill_null(pc.less(known_ms(table), limit), False)
    if until is not None:
        # A rebuilt archive has no positions: what is there was there by then.
        came_later = lies_after(table, until) & (table["stream_ms"].to_numpy() > 0)
        gone = pc.and_(gone, pa.array(~came_later))
    return pc.invert(gone)


def known_ms(table: pa.Table) -> pa.ChunkedArray:
    """Return when each event came in, in milliseconds by the store's clock. A rebuilt archive has the time of
    the rebuild in place of the number: it was there by then.
    """
    ms = table["stream_ms"]
    return pc.if_else(pc.equal(ms, 0), table["stream_seq"], ms)
