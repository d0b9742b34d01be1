"""Read an archive snapshot as the arrays of a fit. Invariant: each pair stands once, with its last value.

User rows are numbered here: users of the earlier fit keep their order, new ones follow. Item rows are the
registry's.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from factors import Ratings
from trainer.archive.segments import read_segment


@dataclass(frozen=True, slots=True)
class FitInput:
    """What a fit learns from.

    `user_ids`: string array (u,); `user_n` int64 (u,): up to which count of the user the snapshot goes;
    `ratings`: ordered by user, each pair once, nothing that was taken back. `kept` int64 (k,): user row in
    the earlier fit of each of the first k users.
    """

    user_ids: pa.StringArray
    user_n: npt.NDArray[np.int64]
    ratings: Ratings
    n_items: int
    kept: npt.NDArray[np.int64]

    @property
    def n_users(self) -> int:
        """How many users there are, those without any rating left included."""
        return len(self.user_ids)


def load_ratings(paths: Iterable[Path], n_items: int, earlier: pa.StringArray | None = None) -> FitInput:
    """Read the segments `paths`, each verified. `n_items`: rows of the registry so far.

    `earlier`: user ids of an earlier fit. An erased one is no valid text, so no event has it. Raises
    `SegmentDamagedError` and `SegmentGoneError`.
    """
    encoded: list[pa.DictionaryArray] = []
    columns: dict[str, list[npt.NDArray[Any]]] = {"n": [], "item_row": [], "rating": [], "time": []}
    for path in paths:
        table, _ = read_segment(path)
        encoded.extend(table["user_id"].dictionary_encode().chunks)
        for name, parts in columns.items():
            parts.append(table[name].to_numpy())
    codes, user_ids = _unified(encoded)
    n = _joined(columns["n"], np.int64)
    item_row = _joined(columns["item_row"], np.int64)
    rating = _joined(columns["rating"], np.float64)
    time = _joined(columns["time"], np.float64)
    rows, user_ids, kept = _ordered_users(user_ids, earlier)
    user_row = rows[codes]
    user_n = np.zeros(len(user_ids), dtype=np.int64)
    np.maximum.at(user_n, user_row, n)
    last = last_of_pairs(user_row, item_row, n)
    last = last[~np.isnan(rating[last])]
    ratings = Ratings(
        user_row[last].astype(np.int32), item_row[last].astype(np.int32), rating[last], time[last]
    )
    # Items may have been registered since the registry was read.
    highest = int(item_row.max()) + 1 if len(item_row) else 0
    return FitInput(user_ids, user_n, ratings, max(n_items, highest), kept)


def last_of_pairs(
    user_row: npt.NDArray[np.int64], item_row: npt.NDArray[np.int64], n: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Return the positions of the last event of each pair, ordered by user, then item.

    Of equal `n` the later position wins: after a rebuild an event may be there twice.
    """
    order = np.lexsort((n, item_row, user_row))
    if len(order) == 0:
        return order
    user, item = user_row[order], item_row[order]
    last = np.ones(len(order), dtype=bool)
    last[:-1] = (user[1:] != user[:-1]) | (item[1:] != item[:-1])
    return order[last]


def _unified(encoded: list[pa.DictionaryArray]) -> tuple[npt.NDArray[np.int64], pa.StringArray]:
    if not encoded:
        return np.zeros(0, dtype=np.int64), pa.array([], type=pa.string())
    # Strings stay in Arrow: a Python object for each of millions of events would take longer than the fit.
    chunks = pa.chunked_array(encoded).unify_dictionaries().chunks
    codes = np.concatenate([chunk.indices.to_numpy(zero_copy_only=False) for chunk in chunks])
    return codes.astype(np.int64), chunks[-1].dictionary


def _ordered_users(
    user_ids: pa.StringArray, earlier: pa.StringArray | None
) -> tuple[npt.NDArray[np.int64], pa.StringArray, npt.NDArray[np.int64]]:
    """Return the row of each of `user_ids`, the ids in the order of their rows, and the earlier rows that
    come first.
    """
    if earlier is None or len(earlier) == 0:
        return np.arange(len(user_ids)), user_ids, np.zeros(0, dtype=np.int64)
    found = (
        pc.index_in(user_ids, value_set=earlier).fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    )
    # Known users by their earlier rows, then the others by their first event.
    order = np.argsort(np.where(found < 0, len(earlier), found), kind="stable")
    rows = np.empty(len(order), dtype=np.int64)
    rows[order] = np.arange(len(order))
    return rows, user_ids.take(pa.array(order)), found[order][: int((found >= 0).sum())]


def _joined(parts: list[npt.NDArray[Any]], dtype: type[np.generic]) -> npt.NDArray[Any]:
    return np.concatenate(parts).astype(dtype) if parts else np.zeros(0, dtype=dtype)
