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
    # Each begins with nothing of its type, so that no segment at all is no special case.
    columns: dict[str, list[npt.NDArray[Any]]] = {
        "n": [np.zeros(0, np.int64)],
        "item_row": [np.zeros(0, np.int64)],
        "rating": [np.zeros(0, np.float64)],
        "time": [np.zeros(0, np.float64)],
    }
    for path in paths:
        table, _ = read_segment(path)
        encoded.extend(table["user_id"].dictionary_encode().chunks)
        for name, parts in columns.items():
            parts.append(table[name].to_numpy())
    # Strings stay in Arrow: a Python object for each of millions of events would take longer than the fit.
    codes, user_ids = np.zeros(0, np.int64), pa.array([], type=pa.string())
    if encoded:
        chunks = pa.chunked_array(encoded).unify_dictionaries().chunks
        codes = np.concatenate([chunk.indices.to_numpy(zero_copy_only=False) for chunk in chunks])
        user_ids = chunks[-1].dictionary
    n, item_row, rating, time = map(np.concatenate, columns.values())
    kept = np.zeros(0, np.int64)
    if earlier is not None and len(earlier):
        found = pc.index_in(user_ids, value_set=earlier).fill_null(-1).to_numpy(zero_copy_only=False)
        # Known users by their earlier rows, then the others by their first event.
        order = np.argsort(np.where(found < 0, len(earlier), found), kind="stable")
        user_ids = user_ids.take(pa.array(order))
        kept = found[order][: int((found >= 0).sum())].astype(np.int64)
        rows = np.empty(len(order), dtype=np.int64)
        rows[order] = np.arange(len(order))
        codes = rows[codes]
    user_row = codes.astype(np.int64, copy=False)
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
