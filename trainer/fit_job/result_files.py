"""The files of a fit, which the trainer maps.

Invariant: a folder under its final name is complete. An erased user is overwritten in place, so that no file
of a fit names or describes a forgotten user.
"""

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import scipy.sparse as sp

from factors import (
    Choices,
    Columns,
    Fitted,
    RankingFit,
    SideAttributes,
    SideName,
    from_bytes,
    head_to_bytes,
    mark_described,
    posterior_of,
    side_attributes_from_bytes,
    side_attributes_to_bytes,
    to_bytes,
)
from trainer.archive.files import TEMPORARY, sync_directory
from trainer.errors import ArchiveFailedError, FitFailedError
from trainer.fit_job.ratings import FitInput
from trainer.fit_job.results import ERASED, Described, FitResult, entries_of, user_hash

Writable = np.memmap[Any, np.dtype[Any]]

# Grows when a fit of today could not be read by an older trainer, which then makes one of its own.
FORMAT = 1
_SUMMARY = "fit.json"
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
# Only of a fit with a ranking head; with attributes of items; with those of users.
_OF_A_HEAD = ("ranking", "ranking_users")
_OF_ATTRIBUTES = ("attributes", "columns_indptr", "columns_index", "columns_value", "columns_center")
_OF_USERS = "user_attributes"
# Only of a fit that has learned events of other types than ratings.
_OF_EVENTS = ("event_indptr", "event_users", "event_codes", "event_values", "event_times")
# Only where contexts were given.
_OF_CONTEXTS = ("item_contexts",)
# Of those with nothing of an item one is found at the first of large worlds, and mostly where nine in ten
# have rated it; else the entry stays, without an id, a value or a hash.
_TRIES = 32
_OF_A_RATING = ("item_values", "item_times", "event_values", "event_times")


# What another read would find again: nothing is there, or a folder, or no system call has failed.
_NOT_A_FILE = {None, errno.ENOENT, errno.EISDIR, errno.ENOTDIR}


def write_result(
    path: Path,
    data: FitInput,
    fitted: Fitted,
    metrics: dict[str, float],
    described: Mapping[SideName, Described] = MappingProxyType({}),
    *,
    catalogue: str | None = None,
    users_read_ms: int = 0,
) -> None:
    """Write the fit of the ratings to the folder `path`, which appears only when it is complete. Of users
    whose rows do not rest on attributes nothing is written of these, and of others how they are encoded.
    `catalogue`: the version that was read, `users_read_ms`: when the attributes of users were.
    """
    ratings = data.ratings
    by_item, indptr = _by_item(ratings.item_row, data.n_items)
    arrays: dict[str, npt.NDArray[Any]] = {
        "users": fitted.users.astype(np.float32, copy=False),
        "items": fitted.items.astype(np.float32, copy=False),
        "user_n": data.user_n,
        **_user_arrays(data.user_ids),
        "item_indptr": indptr,
        "item_users": ratings.user_row[by_item],
        "item_values": ratings.value[by_item],
        "item_times": ratings.time[by_item],
    }
    if ratings.context is not None:
        arrays["item_contexts"] = ratings.context[by_item]
    if data.choices is not None:
        arrays |= _event_arrays(data.choices, data.n_items)
    version: dict[str, Any] = {} if catalogue is None else {"catalogue": catalogue}
    if (items := described.get("item")) is not None:
        arrays |= _attribute_arrays(items)
    users = described.get("user")
    if users is not None and fitted.posterior.parameters.users.attribute_width:
        arrays[_OF_USERS] = _as_bytes(SideAttributes(users.encoding))
        version["users_read_ms"] = users_read_ms
    temporary = path.with_name(path.name + TEMPORARY)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    for name, array in arrays.items():
        np.save(temporary / f"{name}.npy", array, allow_pickle=False)
    (temporary / "model.bin").write_bytes(to_bytes(fitted.model))
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
        known = side_attributes_from_bytes(_mapped(path, _OF_ATTRIBUTES[0]).data)
        known = replace(known, relevance=ranking.relevance)
        arrays[_OF_ATTRIBUTES[0]] = _as_bytes(known)
        # In place: they are a few rows of a large file, and say nothing without a head.
        items = np.load(path / "items.npy", mmap_mode="r+")
        mark_described(items, ranking.described)
        items.flush()
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
    """Map a fit. Raises `FitFailedError` where it is not there or not whole, `ArchiveFailedError` where it
    could not be read.
    """
    with _reading(path):
        summary = json.loads((path / _SUMMARY).read_text())
        if summary.get("format") != FORMAT:
            raise FitFailedError(f"the fit in {path.name} is of another version")
        arrays: dict[str, Any] = {name: _mapped(path, name) for name in _ARRAYS}
        for more in (_OF_A_HEAD, _OF_EVENTS, _OF_CONTEXTS):
            if _are_there(path, more):
                arrays |= {name: _mapped(path, name) for name in more}
        if (columns := read_columns(path)) is not None:
            encoded = _mapped(path, _OF_ATTRIBUTES[0])
            arrays |= {"attributes": encoded, "columns": columns}
        if "catalogue" in summary:
            arrays["catalogue"] = str(summary["catalogue"])
        if _are_there(path, [_OF_USERS]):
            arrays |= {_OF_USERS: _mapped(path, _OF_USERS), "users_read_ms": int(summary["users_read_ms"])}
        model = from_bytes((path / "model.bin").read_bytes())
        metrics = {str(name): float(value) for name, value in summary["metrics"].items()}
        return FitResult(
            path=path, model=model, metrics=metrics, n_ratings=int(summary["n_ratings"]), **arrays
        )


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """As for segments: of a file that was not seen nothing is known, and it must not be removed."""
    try:
        yield
    except (OSError, EOFError, ValueError, KeyError, IndexError) as exc:
        if isinstance(exc, OSError) and exc.errno not in _NOT_A_FILE:
            raise ArchiveFailedError(f"cannot read the fit in {path.name}: {exc.strerror}") from exc
        raise FitFailedError(f"the files of the fit in {path.name} are not readable: {exc}") from exc


def _event_arrays(choices: Choices, n_items: int) -> dict[str, npt.NDArray[Any]]:
    events = choices.take(np.flatnonzero(choices.type_code))
    by_item, indptr = _by_item(events.item_row, n_items)
    events = events.take(by_item)
    columns = indptr, events.user_row, events.type_code, events.value, events.time
    return dict(zip(_OF_EVENTS, columns, strict=True))


def _user_arrays(user_ids: pa.StringArray) -> dict[str, npt.NDArray[Any]]:
    """Return the ids of the users in the order of their rows, and what finds a row by the hash of its id."""
    offsets, content = _id_arrays(user_ids)
    raw = content.tobytes()
    hashes = np.array([user_hash(raw[a:b]) for a, b in pairwise(offsets.tolist())], dtype=np.uint64)
    by_hash = np.argsort(hashes, kind="stable")
    return {
        "id_offsets": offsets,
        "id_bytes": content,
        "hashes": hashes[by_hash],
        "hash_rows": by_hash.astype(np.int64),
    }


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
    known = _as_bytes(SideAttributes(described.encoding))
    matrix, center = described.columns.matrix, described.columns.center
    parts = (matrix.indptr.astype(np.int64), matrix.indices.astype(np.int32), matrix.data, center)
    return dict(zip(_OF_ATTRIBUTES, (known, *parts), strict=True))


def _as_bytes(attributes: SideAttributes) -> npt.NDArray[np.uint8]:
    return np.frombuffer(side_attributes_to_bytes(attributes), dtype=np.uint8)


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


def erase_users(path: Path, user_ids: Sequence[bytes], items: Mapping[bytes, set[int]] | None = None) -> int:
    """Overwrite users in a fit's files; return how many of them it had. Repeating is safe, and finds fewer:
    the sets of `items` get the rows of those of which each had ratings or other events there, before anything
    is overwritten.

    Results that are mapped already show it. Raises as `read_result`.
    """
    result = read_result(path)
    with _reading(path):
        by_row = {row: user_id for user_id in user_ids if (row := result.row_of(user_id)) is not None}
        if not by_row:
            return 0
        rows = np.array(sorted(by_row), dtype=np.int64)
        if items is not None:
            for row, item in result.items_of(rows).tolist():
                items[by_row[row]].add(item)
        _overwrite(path, result, rows)
        return len(by_row)


def _overwrite(path: Path, result: FitResult, rows: npt.NDArray[np.int64]) -> None:
    users = _writable(path, "users")
    users[rows] = posterior_of(result.model).prior_user
    users.flush()
    if result.ranking_users is not None:
        vectors = _writable(path, "ranking_users")
        vectors[rows] = 0.0
        vectors.flush()
    entries = entries_of(result.item_users, rows)
    others = None if result.event_users is None else entries_of(result.event_users, rows)
    for name in (*_OF_A_RATING, *_OF_CONTEXTS):
        if name in _OF_CONTEXTS and result.item_contexts is None:
            continue
        places = others if name.startswith("event") else entries
        if places is not None:
            # As a rating that was taken back: the arrays keep their sizes, for those that have them mapped.
            array = _writable(path, name)
            array[places] = np.nan
            array.flush()
    # After the values: which items it was that one user chose says who that was.
    _scatter(_writable(path, "item_users"), result.item_indptr, entries, result.n_users)
    if result.event_indptr is not None and others is not None:
        _scatter(_writable(path, "event_users"), result.event_indptr, others, result.n_users)
    hashes = _writable(path, "hashes")
    for place in np.flatnonzero(np.isin(result.hash_rows, rows)).tolist():
        # The order stays.
        hashes[place] = hashes[place - 1] if place else 0
    hashes.flush()
    # The ids last: as long as they stand, a repeated call finds what is left to do.
    ids = _writable(path, "id_bytes")
    for row in rows.tolist():
        ids[int(result.id_offsets[row]) : int(result.id_offsets[row + 1])] = ERASED
    ids.flush()


def _scatter(
    users: Writable, indptr: npt.NDArray[np.int64], entries: npt.NDArray[np.int64], n_users: int
) -> None:
    """Give what stands at `entries` to others, for each item to one who has nothing of that item: there it is
    as a rating that was taken back. `users` (m,) by item, which begin at `indptr`.
    """
    rng = np.random.default_rng()
    for entry, item in zip(entries, np.searchsorted(indptr, entries, side="right") - 1, strict=True):
        of_item = users[indptr[item] : indptr[item + 1]]
        for other in rng.integers(n_users, size=_TRIES):
            if not (of_item == other).any():
                users[entry] = other
                break
    users.flush()


def _writable(path: Path, name: str) -> Writable:
    array: Writable = np.load(path / f"{name}.npy", mmap_mode="r+", allow_pickle=False)
    return array


def _by_item(
    item_row: npt.NDArray[np.int32], n_items: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the order (m,) by item, and where each item begins in it (n_items + 1,)."""
    indptr = np.zeros(n_items + 1, dtype=np.int64)
    np.cumsum(np.bincount(item_row, minlength=n_items), out=indptr[1:])
    return np.argsort(item_row, kind="stable"), indptr


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
