"""The files of a fit, which the trainer maps.

Invariant: a folder under its final name is complete. An erased user is overwritten in place, so that no file
of a fit names or describes a forgotten user.
"""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
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
    posterior_of,
    side_attributes_from_bytes,
    side_attributes_to_bytes,
    to_bytes,
)
from trainer.archive.segments import TEMPORARY, sync_directory
from trainer.errors import FitFailedError
from trainer.fit_job.ratings import FitInput
from trainer.fit_job.results import ERASED, Described, FitResult, user_hash

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
# Release 0.1.0 wrote none of these, and reads a fit that has them.
_OF_A_HEAD = ("ranking", "ranking_users")
_OF_ATTRIBUTES = ("attributes", "columns_indptr", "columns_index", "columns_value", "columns_center")
_OF_USERS = "user_attributes"
# Only of a fit that has learned events of other types than ratings.
_OF_EVENTS = ("event_indptr", "event_users", "event_codes", "event_values", "event_times")
# Only where contexts were given.
_OF_CONTEXTS = ("item_contexts",)
_OF_A_RATING = ("item_values", "item_times", "event_values", "event_times")


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
    except (OSError, ValueError, KeyError) as exc:
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
    for name in (*_OF_A_RATING, *_OF_CONTEXTS):
        if name in _OF_CONTEXTS and result.item_contexts is None:
            continue
        users_of = result.event_users if name.startswith("event") else result.item_users
        if users_of is not None:
            # As a rating that was taken back: the arrays keep their sizes, for those that have them mapped.
            array = np.load(path / f"{name}.npy", mmap_mode="r+", allow_pickle=False)
            array[np.asarray(users_of) == row] = np.nan
            array.flush()
    # The id last: as long as it stands, a repeated call finds what is left to do.
    start, stop = int(result.id_offsets[row]), int(result.id_offsets[row + 1])
    ids = np.load(path / "id_bytes.npy", mmap_mode="r+", allow_pickle=False)
    ids[start:stop] = ERASED
    ids.flush()
    return True


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
