"""Files of ratings become a data set in memory, for an evaluation, and what is said of its items or users.

Invariant: no pair stands twice (its latest rating counts, as in an import), and ids become rows in the order
of their first appearance, so that the same file gives the same arrays everywhere. A file of items is read as
an import of items reads it, and what the data set has no rating of is left out.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from evaluation.offline.data import DataSet
from evaluation.question import SideName
from factors import Columns, Float32s, Ratings, Scale, learn_encoding
from featurestore.catalogue.columns import attributes_by_row
from featurestore.catalogue.item import AttributeType, AttributeValue
from featurestore.catalogue.schema import ValueRefused, new_types, typed
from featurestore.contexts.codec import joined, trimmed
from featurestore.settings import format_scale
from foldin.files.contexts import FileFields
from foldin.files.items import SYNONYMS, USER_SYNONYMS, read_items_file
from foldin.files.layout import find_layout
from foldin.files.pairs import replaced_ratings
from foldin.files.reading import RatingsFile
from foldin.files.rows import BadRow, RowRules, Values, off_scale, scale_of
from processes.errors import CannotStartError

# Any number is taken while a file is read: its own ratings then say what the scale is.
ANY_SCALE = Scale(-1e9, 1e9)
LEAST_RATINGS = 10  # fewer cannot be split
SHOWN_ROWS = 3  # of the bad rows, in a message of one line


@dataclass(frozen=True, slots=True)
class FileRules:
    """How to read a file. `kind`, `columns`: see `find_layout`. `scale`: None to take it from the ratings."""

    kind: str = "auto"
    columns: Mapping[str, str] | None = None
    skip_bad: bool = False
    scale: Scale | None = None


@dataclass(frozen=True, slots=True)
class FileData:
    """A data set from files. `n_first`: how many of its ratings are of the first file; `remarks`: what was
    left out, a line each; `ids`: of users and of items, by row, as bytes.
    """

    data: DataSet
    n_first: int
    remarks: tuple[str, ...]
    ids: Mapping[SideName, pa.Array]


@dataclass(frozen=True, slots=True)
class _Columns:
    user: pa.Array
    item: pa.Array
    value: Values
    time: Values
    contexts: Float32s


def read_files(
    path: Path,
    second: Path | None,
    rules: FileRules,
    on_progress: Callable[[Path, float], None] = lambda _path, _share: None,
) -> FileData:
    """Read the ratings of a file, and of a second one after them. Raises CannotStartError.

    A pair of both files counts in the second.
    """
    remarks: list[str] = []
    # Of both files: the same field, and the same category, has one number.
    fields = FileFields()
    parts = [
        _read(part, rules, fields, remarks, lambda share, part=part: on_progress(part, share))  # type: ignore[misc]
        for part in (path, second)
        if part is not None
    ]
    user, user_ids = _rows([part.user for part in parts])
    item, item_ids = _rows([part.item for part in parts])
    value = np.concatenate([part.value for part in parts])
    time = np.concatenate([part.time for part in parts])
    part_of = np.repeat(np.arange(len(parts)), [len(part.value) for part in parts])
    replaced, repeated = replaced_ratings((user, item), (time, part_of))
    kept = np.flatnonzero(~replaced)
    if repeated:
        remarks.append(f"{repeated:,} pairs stand more than once: the latest counts")
    if len(kept) < LEAST_RATINGS:
        raise CannotStartError(f"{path} has {len(kept)} ratings: give a file with {LEAST_RATINGS} or more")
    scale = rules.scale or scale_of(value)
    off = off_scale(value, scale)
    if off.any():
        raise CannotStartError(
            f"{int(off.sum()):,} ratings of {path} are off the scale {format_scale(scale)}, such as "
            f"{value[off][0]:g}: give another --scale"
        )
    told = joined([(len(part.value), part.contexts) for part in parts])
    context = None if told is None else trimmed(told[kept])
    ratings = Ratings(user[kept], item[kept], value[kept], time[kept], context=context)
    n_first = int((kept < len(parts[0].value)).sum())
    width = 0 if context is None else context.shape[1]
    kinds = tuple(each.kind for each in fields.schema.fields[:width])
    data = DataSet(path.name, ratings, len(user_ids), len(item_ids), scale, context_kinds=kinds)
    return FileData(data, n_first, tuple(remarks), {"user": user_ids, "item": item_ids})


def _read(
    path: Path,
    rules: FileRules,
    fields: FileFields,
    remarks: list[str],
    on_progress: Callable[[float], None],
) -> _Columns:
    file = RatingsFile(path, find_layout(path, rules.kind, rules.columns))
    if unread := file.layout.unread:
        remarks.append(f"columns of {path} that are not read: {', '.join(unread)}")
    bad: list[BadRow] = []
    n_bad = 0
    batches = []
    # Without a time column every time is NaN: nothing is known, and nothing is made up.
    for batch in file.read(RowRules(ANY_SCALE, float("nan"), fields)):
        n_bad += len(batch.bad)
        bad += batch.bad[: SHOWN_ROWS - len(bad)]
        batches.append(batch)
        on_progress(file.position / max(file.total_bytes, 1))
    shown = "; ".join(f"line {row.line}: {row.reason}" for row in bad)
    if n_bad and not rules.skip_bad:
        raise CannotStartError(
            f"{n_bad:,} bad rows in {path} ({shown}): mend them, or leave them out with --on-bad skip"
        )
    if n_bad:
        remarks.append(f"{n_bad:,} bad rows of {path} were left out ({shown})")
    if not batches:
        raise CannotStartError(f"{path} has no ratings: give a file with a rating in each line")
    return _Columns(
        pa.concat_arrays([batch.user_ids for batch in batches]),
        pa.concat_arrays([batch.item_ids for batch in batches]),
        np.concatenate([batch.ratings for batch in batches]),
        np.concatenate([batch.times for batch in batches]),
        np.concatenate([fields.rows(batch.contexts, len(batch)) for batch in batches]),
    )


def _rows(parts: list[pa.Array]) -> tuple[npt.NDArray[np.int32], pa.Array]:
    """Return the row of each id (n,), and the ids by row."""
    encoded = pc.dictionary_encode(pa.concat_arrays(parts))
    rows = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int32)
    return rows, encoded.dictionary.cast(pa.binary())


@dataclass(frozen=True, slots=True)
class SideColumns:
    """`columns` (n, c): the attributes of items (or users), encoded; None where they say nothing.
    `described`: of how many there are any; `remarks`: a line each.
    """

    columns: Columns | None
    described: int
    remarks: tuple[str, ...]


def side_columns(path: Path, side: SideName, ids: pa.Array) -> SideColumns:
    """Return the attributes of items (or users), by row of their `ids` (n,). Raises CannotStartError."""
    read = read_items_file(path, None, {}, names=SYNONYMS if side == "item" else USER_SYNONYMS)
    row_of = {each: row for row, each in enumerate(ids.to_pylist())}
    held: dict[str, AttributeType] = dict(read.types)
    # The last of one that stands twice, as in an import.
    found: dict[int, tuple[list[str], dict[str, AttributeValue]]] = {}
    for number, told in enumerate(read.rows, 1):
        row = row_of.get(str(told.get(f"{side}_id")).encode())
        if row is None:
            continue
        try:
            values = {
                name: typed(name, value, held.get(name))
                for name, value in told.get("attributes", {}).items()
                if value is not None
            }
        except (ValueRefused, AttributeError) as exc:
            raise CannotStartError(f"row {number} of {path}: {exc}") from exc
        held |= new_types(values, held)
        found[row] = [str(each) for each in told.get("categories", [])], values
    described = sum(bool(categories or values) for categories, values in found.values())
    given = attributes_by_row((row, *each) for row, each in found.items())
    encoding = learn_encoding(given, len(ids))
    columns = encoding.encode(given, len(ids)) if encoding.width else None
    return SideColumns(columns, described, tuple(read.remarks))
