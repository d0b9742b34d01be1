"""What a fit leaves on disk for the trainer to map: the tables, the ids of their users, and the ratings by
item.

Invariant: a folder under its final name is complete. An erased user is overwritten in place, so that no file
of a fit names or describes a forgotten user.
"""

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import scipy.sparse as sp

from factors import (
    Choices,
    Columns,
    Encoding,
    Fitted,
    ItemAttributes,
    Model,
    ModelUnreadable,
    RankingFit,
    RankingHead,
    from_bytes,
    head_from_bytes,
    head_to_bytes,
    item_attributes_from_bytes,
    item_attributes_to_bytes,
    posterior_of,
    to_bytes,
)
from trainer import log
from trainer.archive.segments import TEMPORARY, sync_directory
from trainer.errors import FitFailedError
from trainer.fit_job.ratings import FitInput

# Grows when a fit of today could not be read by an older trainer, which then makes one of its own.
FORMAT = 1
# No id has this byte (it is not UTF-8), so an erased id is never found.
_ERASED = 0xFF
_SUMMARY = "fit.json"


@dataclass(frozen=True, slots=True)
class Described:
    """Attributes of the items of a fit: their `encoding` and `columns` (n_items, c), and the `version` of the
    catalogue that they are of.
    """

    encoding: Encoding
    columns: Columns
    version: str


@dataclass(frozen=True, slots=True)
class FitResult:
    """A finished fit, its arrays mapped from disk.

    `users` float32 (u, user_width), `items` float32 (i, item_width), `user_n` int64 (u,): the count of each
    user that the fit has learned. Ratings by item, each pair once: those of item row `j` are
    `item_users[item_indptr[j]:item_indptr[j + 1]]` with `item_values`, `item_times`. Ids lie one behind the
    other in `id_bytes`, cut at `id_offsets` (u + 1,); `hashes` (u,), ascending, finds them by `hash_rows`.
    `ranking` uint8: the ranking head as it is published, and `ranking_users` float32 (u, r), the vectors that
    items are folded into it with; None where the fit has none. Events of other types by item, as the ratings:
    `event_indptr`, `event_users`, `event_codes` uint8, `event_values`, `event_times`; None where there are
    none. `attributes` uint8: how attributes of items were encoded, as it is published, `columns` (i, c):
    theirs, and `catalogue`: the version that had them; None, and empty, where there were none.
    """

    path: Path
    model: Model
    metrics: dict[str, float]
    n_ratings: int
    users: npt.NDArray[np.float32]
    items: npt.NDArray[np.float32]
    user_n: npt.NDArray[np.int64]
    id_offsets: npt.NDArray[np.int64]
    id_bytes: npt.NDArray[np.uint8]
    hashes: npt.NDArray[np.uint64]
    hash_rows: npt.NDArray[np.int64]
    item_indptr: npt.NDArray[np.int64]
    item_users: npt.NDArray[np.int32]
    item_values: npt.NDArray[np.float64]
    item_times: npt.NDArray[np.float64]
    ranking: npt.NDArray[np.uint8] | None = None
    ranking_users: npt.NDArray[np.float32] | None = None
    event_indptr: npt.NDArray[np.int64] | None = None
    event_users: npt.NDArray[np.int32] | None = None
    event_codes: npt.NDArray[np.uint8] | None = None
    event_values: npt.NDArray[np.float64] | None = None
    event_times: npt.NDArray[np.float64] | None = None
    attributes: npt.NDArray[np.uint8] | None = None
    columns: Columns | None = None
    catalogue: str = ""

    def item_attributes(self) -> ItemAttributes | None:
        """Return how attributes of items are encoded; None where there are none that can be read."""
        if self.attributes is None:
            return None
        try:
            return item_attributes_from_bytes(self.attributes.data)
        except ModelUnreadable as exc:
            log.warning("attributes_unreadable", fit=self.path.name, error=str(exc))
            return None

    def head(self) -> RankingHead | None:
        """Return the ranking head, a view of the file; None where there is none that can be read."""
        if self.ranking is None:
            return None
        try:
            return head_from_bytes(self.ranking.data, len(self.items))
        except ModelUnreadable as exc:
            log.warning("ranking_head_unreadable", fit=self.path.name, error=str(exc))
            return None

    @property
    def n_users(self) -> int:
        """How many users are in the tables."""
        return len(self.user_n)

    def user_ids(self, start: int, stop: int) -> list[bytes]:
        """Return the ids of the users `start` to `stop`. An erased one is all 0xFF bytes."""
        offsets = self.id_offsets[start : stop + 1]
        content = self.id_bytes[offsets[0] : offsets[-1]].tobytes()
        edges = (offsets - offsets[0]).tolist()
        return [content[a:b] for a, b in pairwise(edges)]

    def user_id_array(self) -> pa.StringArray:
        """Return all ids as one Arrow array, not copied."""
        # Offsets of 64 bits, as they lie on disk: there may be more than 2 GB of ids. The casts look at
        # offsets only.
        offsets = pa.py_buffer(np.ascontiguousarray(self.id_offsets))
        wide = pa.Array.from_buffers(
            pa.large_string(),
            self.n_users,
            [None, offsets, pa.py_buffer(np.ascontiguousarray(self.id_bytes))],
        )
        return wide.view(pa.large_binary()).cast(pa.binary()).view(pa.string())

    def rows_of(self, user_ids: list[bytes], *, erased: bool = False) -> npt.NDArray[np.int64]:
        """Return the row of each user; -1 for a user who is not in the fit.

        A user who was erased from it is in it only where `erased` is set.
        """
        rows = np.full(len(user_ids), -1, dtype=np.int64)
        wanted = np.array([user_hash(user_id) for user_id in user_ids], dtype=np.uint64)
        first = np.searchsorted(self.hashes, wanted)
        for k, user_id in enumerate(user_ids):
            # More than one pass only where two ids share 64 bits of BLAKE2b.
            position = int(first[k])
            while position < len(self.hashes) and self.hashes[position] == wanted[k]:
                row = int(self.hash_rows[position])
                found = self.id_bytes[self.id_offsets[row] : self.id_offsets[row + 1]].tobytes()
                if found == user_id or (erased and is_erased(found)):
                    rows[k] = row
                    break
                position += 1
        return rows

    def item_history(self, item_row: int) -> slice:
        """Return where the ratings of an item are; nowhere for an item that the fit did not know."""
        return _place_of(item_row, self.item_indptr)

    def of_item(self, item_row: int, *, events: bool) -> Choices:
        """Return the ratings of an item, and then the `events` of other types where these are wanted."""
        part = self.item_history(item_row)
        users, values, times = self.item_users[part], self.item_values[part], self.item_times[part]
        codes = np.zeros(len(users), dtype=np.uint8)
        if events and self.event_indptr is not None:
            part = _place_of(item_row, self.event_indptr)
            users = np.concatenate([users, _all(self.event_users)[part]])
            values = np.concatenate([values, _all(self.event_values)[part]])
            times = np.concatenate([times, _all(self.event_times)[part]])
            codes = np.concatenate([codes, _all(self.event_codes)[part]])
        return Choices(users, np.full(len(users), item_row, dtype=np.int32), values, times, codes)

    def wanted_times(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]] | None:
        """Return where each item's events of other types than ratings begin (i + 1,), and their times (m,):
        NaN where they do not say that a user wanted the item. None where there are none.
        """
        head = self.head()
        if head is None or self.event_indptr is None:
            return None
        positive = [each.code for each in head.parameters.types if each.meaning == "positive"]
        counts = np.isin(_all(self.event_codes), positive) & ~np.isnan(_all(self.event_values))
        return self.event_indptr, np.where(counts, _all(self.event_times), np.nan)

    def items_of(self, user_row: int) -> npt.NDArray[np.int64]:
        """Return the rows of the items of which a user has ratings or other events."""
        found = [np.zeros(0, dtype=np.int64)]
        for indptr, users in ((self.item_indptr, self.item_users), (self.event_indptr, self.event_users)):
            if indptr is not None and users is not None:
                entries = np.flatnonzero(np.asarray(users) == user_row)
                found.append(np.searchsorted(indptr, entries, side="right") - 1)
        return np.unique(np.concatenate(found))


_ARRAYS = (
    "users",
    "items",
    "user_n",
    "id_offsets",
    "id_bytes",
    "hashes",
    "hash_rows",
    "item_indptr",
    "item_users",
    "item_values",
    "item_times",
)
# Release 0.1.0 wrote none of these, and reads a fit that has them.
_OF_A_HEAD = ("ranking", "ranking_users")
_OF_ATTRIBUTES = ("attributes", "columns_indptr", "columns_index", "columns_value", "columns_center")


# Only of a fit that has learned events of other types than ratings.
_OF_EVENTS = ("event_indptr", "event_users", "event_codes", "event_values", "event_times")
_OF_A_RATING = ("item_values", "item_times", "event_values", "event_times")


def fit_in_memory(
    model: Model, users: npt.NDArray[np.float32], items: npt.NDArray[np.float32], ids: Sequence[bytes]
) -> FitResult:
    """Return a fit of one rating a user whose tables are in memory, without what publishing does not read."""
    n_users = len(users)
    none = np.zeros(0, dtype=np.int64)
    return FitResult(
        path=Path(),
        model=model,
        metrics={},
        n_ratings=n_users,
        users=users,
        items=items,
        user_n=np.ones(n_users, dtype=np.int64),
        id_offsets=np.cumsum([0, *map(len, ids)]).astype(np.int64),
        id_bytes=np.frombuffer(b"".join(ids), dtype=np.uint8),
        hashes=none.astype(np.uint64),
        hash_rows=none,
        item_indptr=none,
        item_users=none.astype(np.int32),
        item_values=none.astype(np.float64),
        item_times=none.astype(np.float64),
    )


def write_result(
    path: Path,
    data: FitInput,
    fitted: Fitted,
    metrics: dict[str, float],
    described: Described | None = None,
) -> None:
    """Write the fit of the ratings to the folder `path`, which appears only when it is complete."""
    offsets, content = _id_arrays(data.user_ids)
    edges = offsets.tolist()
    raw = content.tobytes()
    hashes = np.array([user_hash(raw[a:b]) for a, b in pairwise(edges)], dtype=np.uint64)
    by_hash = np.argsort(hashes, kind="stable")
    ratings = data.ratings
    by_item, indptr = _by_item(ratings.item_row, data.n_items)
    arrays: dict[str, npt.NDArray[Any]] = {
        "users": fitted.users.astype(np.float32, copy=False),
        "items": fitted.items.astype(np.float32, copy=False),
        "user_n": data.user_n,
        "id_offsets": offsets,
        "id_bytes": content,
        "hashes": hashes[by_hash],
        "hash_rows": by_hash.astype(np.int64),
        "item_indptr": indptr,
        "item_users": ratings.user_row[by_item],
        "item_values": ratings.value[by_item],
        "item_times": ratings.time[by_item],
    }
    if data.choices is not None:
        events = data.choices.take(np.flatnonzero(data.choices.type_code))
        by_item, indptr = _by_item(events.item_row, data.n_items)
        events = events.take(by_item)
        columns = indptr, events.user_row, events.type_code, events.value, events.time
        arrays |= zip(_OF_EVENTS, columns, strict=True)
    if described is not None:
        arrays |= _attribute_arrays(described)
    temporary = path.with_name(path.name + TEMPORARY)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    for name, array in arrays.items():
        np.save(temporary / f"{name}.npy", array, allow_pickle=False)
    (temporary / "model.bin").write_bytes(to_bytes(fitted.model))
    version = {} if described is None else {"catalogue": described.version}
    summary = {"format": FORMAT, "metrics": metrics, "n_ratings": len(ratings.value), **version}
    (temporary / _SUMMARY).write_text(json.dumps(summary))
    for file in temporary.iterdir():
        _sync(file)
    # All content is on disk before the name is: a name that is there after a power cut has what it promises.
    temporary.rename(path)
    sync_directory(path.parent)


def write_head(path: Path, ranking: RankingFit) -> None:
    """Add a ranking head to the fit `path`; one that is not complete is not read."""
    summary = json.loads((path / _SUMMARY).read_text())
    summary["metrics"] |= ranking.metrics
    head: npt.NDArray[Any] = np.frombuffer(head_to_bytes(ranking.head), dtype=np.uint8)
    arrays = dict(zip(_OF_A_HEAD, (head, ranking.users), strict=True))
    if ranking.relevance is not None:
        known = item_attributes_from_bytes(_mapped(path, _OF_ATTRIBUTES[0]).data)
        known = replace(known, relevance=ranking.relevance)
        arrays[_OF_ATTRIBUTES[0]] = np.frombuffer(item_attributes_to_bytes(known), dtype=np.uint8)
    (path / (_SUMMARY + TEMPORARY)).write_text(json.dumps(summary))
    for name, array in arrays.items():
        with (path / f"{name}.npy{TEMPORARY}").open("wb") as file:
            np.save(file, array, allow_pickle=False)
    for written in path.glob(f"*{TEMPORARY}"):
        _sync(written)
        written.rename(written.with_suffix(""))
    sync_directory(path)


def unnamed(path: Path) -> Path:
    """Return where the fit that is to be `path` lies as long as its ranking head is not there."""
    return path.with_name(f"{path.name}.ratings")


def take_name(path: Path) -> bool:
    """Give a fit its final name, with the head or without; say whether there is one of the ratings."""
    try:
        # Of a head that was being written.
        for leftover in unnamed(path).glob(f"*{TEMPORARY}"):
            leftover.unlink()
        unnamed(path).rename(path)
    except FileNotFoundError:
        return False
    sync_directory(path.parent)
    return True


def read_result(path: Path) -> FitResult:
    """Map a fit. Raises `FitFailedError` where it is not there or not whole."""
    try:
        summary = json.loads((path / _SUMMARY).read_text())
        # Version 0.1.0 did not say.
        if summary.get("format", 1) != FORMAT:
            raise FitFailedError(f"the fit in {path.name} is of another version")
        arrays: dict[str, Any] = {name: _mapped(path, name) for name in _ARRAYS}
        for more in (_OF_A_HEAD, _OF_EVENTS):
            if _are_there(path, more):
                arrays |= {name: _mapped(path, name) for name in more}
        if (columns := read_columns(path)) is not None:
            encoded = _mapped(path, _OF_ATTRIBUTES[0])
            arrays |= {"attributes": encoded, "columns": columns, "catalogue": str(summary["catalogue"])}
        model = from_bytes((path / "model.bin").read_bytes())
        metrics = {str(name): float(value) for name, value in summary["metrics"].items()}
        return FitResult(
            path=path, model=model, metrics=metrics, n_ratings=int(summary["n_ratings"]), **arrays
        )
    except (OSError, ValueError, KeyError) as exc:
        raise FitFailedError(f"the files of the fit in {path.name} are not readable: {exc}") from exc


def _id_arrays(user_ids: pa.StringArray) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8]]:
    """Return where each id begins and ends, (u + 1,), and the bytes of all."""
    # Of no users at all the buffers may be missing.
    if not (count := len(user_ids)):
        return np.zeros(1, dtype=np.int64), np.zeros(0, dtype=np.uint8)
    _, offset_buffer, buffer = user_ids.buffers()
    part = slice(user_ids.offset, user_ids.offset + count + 1)
    offsets = np.frombuffer(offset_buffer, dtype=np.int32)[part].astype(np.int64)
    return offsets - offsets[0], np.frombuffer(buffer, dtype=np.uint8)[offsets[0] : offsets[-1]]


def _attribute_arrays(described: Described) -> dict[str, npt.NDArray[Any]]:
    known = item_attributes_to_bytes(ItemAttributes(described.encoding))
    matrix, center = described.columns.matrix, described.columns.center
    parts = (matrix.indptr.astype(np.int64), matrix.indices.astype(np.int32), matrix.data, center)
    return dict(zip(_OF_ATTRIBUTES, (np.frombuffer(known, dtype=np.uint8), *parts), strict=True))


def read_columns(path: Path) -> Columns | None:
    """Return the attributes of the items of a fit, encoded; None where there are none."""
    if not _are_there(path, _OF_ATTRIBUTES):
        return None
    indptr, index, value, center = (_mapped(path, name) for name in _OF_ATTRIBUTES[1:])
    matrix = sp.csr_array((value, index, indptr), shape=(len(indptr) - 1, len(center)))
    return Columns(matrix, np.asarray(center))


def _mapped(path: Path, name: str) -> npt.NDArray[Any]:
    return np.asanyarray(np.load(path / f"{name}.npy", mmap_mode="r", allow_pickle=False))


def _are_there(path: Path, names: Sequence[str]) -> bool:
    return all((path / f"{name}.npy").is_file() for name in names)


def erase_user(path: Path, user_id: bytes) -> bool:
    """Overwrite a user in a fit's files; say whether the user was there. Repeating is safe.

    Results that are mapped already show it. Raises `FitFailedError` where the files cannot be read.
    """
    result = read_result(path)
    row = int(result.rows_of([user_id])[0])
    if row < 0:
        return False
    users = np.load(path / "users.npy", mmap_mode="r+", allow_pickle=False)
    users[row] = posterior_of(result.model).prior_user
    users.flush()
    if result.ranking_users is not None:
        vectors = np.load(path / "ranking_users.npy", mmap_mode="r+", allow_pickle=False)
        vectors[row] = 0.0
        vectors.flush()
    for name in _OF_A_RATING:
        users_of = result.event_users if name.startswith("event") else result.item_users
        if users_of is not None:
            # As a rating that was taken back: the arrays keep their sizes, for those that have them mapped.
            array = np.load(path / f"{name}.npy", mmap_mode="r+", allow_pickle=False)
            array[np.asarray(users_of) == row] = np.nan
            array.flush()
    # The id last: as long as it stands, a repeated call finds what is left to do.
    start, stop = int(result.id_offsets[row]), int(result.id_offsets[row + 1])
    ids = np.load(path / "id_bytes.npy", mmap_mode="r+", allow_pickle=False)
    ids[start:stop] = _ERASED
    ids.flush()
    return True


def is_erased(user_id: bytes) -> bool:
    """Say whether an id from a fit's files is that of a user who was erased from them."""
    return user_id[:1] == bytes([_ERASED])


def user_hash(user_id: bytes) -> int:
    """Return 64 bits of an id, the same in every process."""
    return int.from_bytes(blake2b(user_id, digest_size=8).digest(), "little")


def _by_item(
    item_row: npt.NDArray[np.int32], n_items: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the order (m,) by item, and where each item begins in it (n_items + 1,)."""
    indptr = np.zeros(n_items + 1, dtype=np.int64)
    np.cumsum(np.bincount(item_row, minlength=n_items), out=indptr[1:])
    return np.argsort(item_row, kind="stable"), indptr


def _all(array: npt.NDArray[Any] | None) -> npt.NDArray[Any]:
    """Return an array that is there where `event_indptr` is."""
    if array is None:
        raise FitFailedError("a fit lacks some of its events")
    return array


def _place_of(item_row: int, indptr: npt.NDArray[np.int64]) -> slice:
    if item_row + 1 >= len(indptr):
        return slice(0, 0)
    return slice(int(indptr[item_row]), int(indptr[item_row + 1]))


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
