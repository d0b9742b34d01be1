"""Item rows that were folded in since a fit, as entries of a stream. Invariant: of a row that came more than
once the last counts, and an entry that is not what was written is `GenerationBroken`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from zlib import crc32

import numpy as np

from factors import Float32s, Int32s
from featurestore.errors import GenerationBroken
from featurestore.generations.activity import POSITIVE_COLUMNS
from featurestore.keys import shown_key

Fields = Mapping[bytes, bytes]


@dataclass(frozen=True, slots=True)
class Deltas:
    """Item rows folded in since the fit, each once: `rows` int32 (m,), `vectors` float32 (m, item_width).

    `rated` int32 (l,), `levels` float32 (l, 1): those whose level is told, see `Activity`.
    `ranked` int32 (k,), `factors` float32 (k, r): those that have new factors in the ranking head.
    `counted` int32 (p,), `positives` float32 (p, 3): those whose positive events are told, see `Positives`.
    `after`: the stream id to go on from.
    """

    rows: Int32s
    vectors: Float32s
    rated: Int32s
    levels: Float32s
    ranked: Int32s
    factors: Float32s
    counted: Int32s
    positives: Float32s
    after: str

    def levels_of(self, rows: Int32s) -> Float32s:
        """Return the levels (m, 1) of `rows` (m,), NaN where they are not told."""
        return _at_rows(self.rated, self.levels, rows)

    def factors_of(self, rows: Int32s) -> Float32s:
        """Return the factors (m, r) of `rows` (m,), NaN where there are none."""
        return _at_rows(self.ranked, self.factors, rows)

    def positives_of(self, rows: Int32s) -> Float32s:
        """Return the positive events (m, 3) of `rows` (m,), NaN where they are not told."""
        return _at_rows(self.counted, self.positives, rows)


def encode_delta(rows: Int32s, *tables: Float32s) -> list[bytes]:
    """The values of an entry: rows, then of each table its rows, and the checksum of both. The tables:
    vectors; levels (m, 1), factors (m, r), rows of NaN where there are none; positive events (m, 3), which go
    with factors alone.
    """
    some_rows = rows.astype("<i4").tobytes()
    values = [some_rows]
    for table in tables:
        data = table.astype("<f4").tobytes()
        values += [data, _checksum(some_rows, data)]
    return values


def decode_deltas(
    entries: Sequence[tuple[bytes, Fields]], width: int, after: str, key: bytes, rank: int = 0
) -> Deltas:
    """Stream entries of `key` as deltas: of a row that came more than once the last. `rank`: of the ranking
    head, 0 where its factors are not wanted.

    Raises `GenerationBroken` where one is not what was written.
    """
    rows, vectors = [np.empty(0, np.int32)], [np.empty((0, width), np.float32)]
    rated, levels = list(rows), [np.empty((0, 1), np.float32)]
    ranked, factors = list(rows), [np.empty((0, rank), np.float32)]
    counted, positives = list(rows), [np.empty((0, POSITIVE_COLUMNS), np.float32)]
    for entry, delta in entries:
        found = _table(delta, b"v", b"c", width)
        if found is None:
            raise GenerationBroken(f"entry {entry.decode()} is not what was written", shown_key(key))
        some_rows = np.frombuffer(delta[b"r"], dtype="<i4")
        rows.append(some_rows)
        vectors.append(found)
        # A trainer without a head wrote no factors.
        # Positive events are told of where the fit has learned any events that are no ratings.
        of_head = (
            (b"h", b"k", rank, ranked, factors),
            (b"p", b"q", POSITIVE_COLUMNS, counted, positives),
        )
        for name, check, columns, of_rows, tables in ((b"a", b"b", 1, rated, levels), *of_head * (rank > 0)):
            if name in delta:
                found = _table(delta, name, check, columns)
                if found is None:
                    raise GenerationBroken(f"entry {entry.decode()} is not what was written", shown_key(key))
                known = np.isfinite(found).all(axis=1)
                of_rows.append(some_rows[known])
                tables.append(found[known])
    if entries:
        after = entries[-1][0].decode()
    in_head = _last_of_each(ranked, factors), _last_of_each(counted, positives)
    of_items = _last_of_each(rows, vectors), _last_of_each(rated, levels)
    return Deltas(*of_items[0], *of_items[1], *in_head[0], *in_head[1], after)


def _at_rows(known: Int32s, table: Float32s, rows: Int32s) -> Float32s:
    """Return what a `table` (k, c) of the rows `known` (k,), ascending, says of `rows` (m,); NaN where it
    says nothing.
    """
    found = np.full((len(rows), table.shape[1]), np.nan, dtype=np.float32)
    place = np.searchsorted(known, rows)
    hit = np.flatnonzero(place < len(known))
    hit = hit[known[place[hit]] == rows[hit]]
    found[hit] = table[place[hit]]
    return found


def _table(delta: Fields, name: bytes, check: bytes, width: int) -> Float32s | None:
    """Return the rows (m, width) of an entry; None where they are not what was written."""
    rows, data = delta.get(b"r", b""), delta.get(name, b"")
    count, rest = divmod(len(rows), 4)
    sound = delta.get(check) == _checksum(rows, data)
    if not count or rest or len(data) != 4 * count * width or not sound:
        return None
    return np.frombuffer(data, dtype="<f4").reshape(count, width)


def _checksum(rows: bytes, data: bytes) -> bytes:
    return b"%d" % crc32(data, crc32(rows))


def _last_of_each(rows: Sequence[Int32s], tables: Sequence[Float32s]) -> tuple[Int32s, Float32s]:
    every, table = np.concatenate(rows), np.concatenate(tables)
    # Of a row that came more than once `unique` finds the first from behind: the last.
    kept, last = np.unique(every[::-1], return_index=True)
    return kept, table[len(every) - 1 - last]
