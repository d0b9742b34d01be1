"""Rating events as the archive has them, and a guard for an archive of them."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featurestore.ratings.stream import Events
from trainer.archive.epoch_archive import EpochArchive
from trainer.archive.events import make_table, spans_of, string_array
from trainer.archive.segments import read_segment


def item_ids(count: int) -> pa.StringArray:
    """The registry that `event_table` has its items from: the item with row 7 is `i7`."""
    return string_array(b"i%d" % row for row in range(count))


def event_table(
    users: Sequence[str],
    n: npt.ArrayLike,
    item_row: npt.ArrayLike,
    rating: npt.ArrayLike,
    *,
    stream_ms: npt.ArrayLike,
    partition: npt.ArrayLike = 0,
    time: npt.ArrayLike = np.nan,
    context: npt.ArrayLike | None = None,
) -> pa.Table:
    """A table of one event for each of `users`; the item with row 7 is `i7`."""
    count = len(users)
    items = np.asarray(item_row, dtype=np.int64)
    events = Events(
        partition=np.full(count, partition, dtype=np.int32),
        stream_ms=np.asarray(stream_ms, dtype=np.int64),
        stream_seq=np.zeros(count, dtype=np.int64),
        users=[user.encode() for user in users],
        user=np.arange(count),
        n=np.asarray(n, dtype=np.int64),
        item_row=items,
        type_code=np.zeros(count, dtype=np.uint8),
        rating=np.asarray(rating, dtype=np.float64),
        time=np.full(count, time, dtype=np.float64),
        context=None if context is None else np.asarray(context, dtype=np.float32),
    )
    return make_table(events, [b"i%d" % row for row in range(events.n_items)])


def opened(archive: EpochArchive) -> list[tuple[Path, pa.OSFile]]:
    """The segments of an archive as a fit reads them."""
    snapshot, files = archive.open_snapshot()
    return list(zip(snapshot.paths, files, strict=True))


def events_in(paths: Iterable[Path], *columns: str) -> list[tuple[Any, ...]]:
    """What these segments have in these columns, event by event."""
    tables = [read_segment(path).select(columns) for path in paths]
    return [tuple(row.values()) for table in tables for row in table.to_pylist()]


def free() -> None:
    """A guard of an archive that lets everything pass."""


def append(archive: EpochArchive, *events: Any, **columns: Any) -> None:
    """Append events, as `event_table` takes them, as one segment."""
    table = event_table(*events, **columns)
    archive.append(table, spans_of(table))


def filled(folder: Path, segments: int = 2) -> EpochArchive:
    """An archive of segments with an event of `ann` and one of `bob` each."""
    archive = EpochArchive(folder, 1, guard=free)
    for k in range(segments):
        ms = [10 * k + 1, 10 * k + 2]
        append(archive, ["ann", "bob"], [k + 1, k + 1], [0, 1], [3.0, 4.0], stream_ms=ms)
    return archive
