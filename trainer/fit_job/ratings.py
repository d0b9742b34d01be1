"""Read an archive snapshot as the arrays of a fit. Invariant: each pair stands once, with its last value.

User rows are numbered here: users of the earlier fit keep their order, new ones follow. Item rows are the
registry's, found by item id: the row that an event was archived with may be another item's by now.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from factors import Choices, Float32s, Ratings
from featurestore.codecs import type_codes_of, typed_rows
from featurestore.contexts.codec import joined, trimmed
from trainer.archive.events import contexts_of
from trainer.archive.segments import read_segment


@dataclass(frozen=True, slots=True)
class FitInput:
    """What a fit learns from.

    `user_ids`: string array (u,); `user_n` int64 (u,): up to which count of the user the snapshot goes;
    `ratings`: ordered by user, then as they were made, each pair once, nothing that was taken back;
    `choices`: the same with the events of other types among them, None where there are none of these. `kept`
    int64 (k,): user row in the earlier fit of each of the first k users. `unknown`: events of items that the
    registry does not have, which are left out. `unlearned` int64: positions of the ratings that the earlier
    fit has not learned, in the order in which they arrived; all of them where there was none.
    """

    user_ids: pa.StringArray
    user_n: npt.NDArray[np.int64]
    ratings: Ratings
    n_items: int
    kept: npt.NDArray[np.int64]
    unlearned: npt.NDArray[np.int64]
    unknown: int = 0
    choices: Choices | None = None

    @property
    def n_users(self) -> int:
        """How many users there are, those without any rating left included."""
        return len(self.user_ids)


def load_ratings(
    segments: Iterable[tuple[Path, pa.NativeFile]],
    item_ids: pa.StringArray,
    earlier: pa.StringArray | None = None,
    learned: npt.NDArray[np.int64] | None = None,
) -> FitInput:
    """Read the open `segments`, each verified. `item_ids`: by item row of the registry.

    `earlier`: user ids of an earlier fit, which has `learned` these users up to that `n`. An erased one is no
    valid text, so no event has it. Raises `SegmentDamagedError`.
    """
    users, items = _Dictionary(), _Dictionary()
    # Each begins with nothing of its type, so that no segment at all is no special case.
    columns: dict[str, list[npt.NDArray[Any]]] = {
        "n": [np.zeros(0, np.int64)],
        "rating": [np.zeros(0, np.float64)],
        "time": [np.zeros(0, np.float64)],
        "item_row": [np.zeros(0, np.uint32)],
    }
    contexts = list[tuple[int, Float32s | None]]()
    for path, file in segments:
        table, _ = read_segment(path, file)
        contexts.append((table.num_rows, contexts_of(table)))
        users.add(table["user_id"])
        items.add(table["item_id"])
        for name, parts in columns.items():
            parts.append(table[name].to_numpy())
    codes, user_ids = users.joined()
    item_codes, distinct = items.joined()
    n, rating, time, stored = map(np.concatenate, columns.values())
    found_rows = pc.index_in(distinct, value_set=item_ids).fill_null(-1).to_numpy(zero_copy_only=False)
    item_row = found_rows.astype(np.int64)[item_codes]
    user_ids, order, kept = _in_order(user_ids, earlier)
    rows = np.empty(len(order), dtype=np.int64)
    rows[order] = np.arange(len(order))
    user_row = rows[codes]
    user_n = np.zeros(len(user_ids), dtype=np.int64)
    np.maximum.at(user_n, user_row, n)
    type_code = type_codes_of(stored)
    last = last_of_pairs(user_row, typed_rows(type_code, item_row), n)
    last = last[~np.isnan(rating[last]) & (item_row[last] >= 0)]
    last = last[np.lexsort((n[last], user_row[last]))]
    every = Choices(
        *(user_row[last].astype(np.int32), item_row[last].astype(np.int32), rating[last], time[last]),
        type_code[last],
    )
    rated = every.type_code == 0
    ratings, last = every.ratings(), last[rated]
    context = joined(contexts)
    ratings = ratings if context is None else replace(ratings, context=trimmed(context[last]))
    learned_n = np.zeros(len(user_ids), dtype=np.int64)
    if learned is not None:
        learned_n[: len(kept)] = learned[kept]
    new = np.flatnonzero(n[last] > learned_n[ratings.user_row])
    unlearned = new[np.argsort(last[new])]
    unknown, choices = int((item_row < 0).sum()), None if rated.all() else every
    return FitInput(user_ids, user_n, ratings, len(item_ids), kept, unlearned, unknown, choices)


def _in_order(
    user_ids: pa.StringArray, earlier: pa.StringArray | None
) -> tuple[pa.StringArray, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the users in the order of their rows, their positions (u,) in `user_ids`, and the rows in the
    earlier fit of those who are in it, who come first.
    """
    if earlier is None or not len(earlier):
        return user_ids, np.arange(len(user_ids)), np.zeros(0, np.int64)
    found = pc.index_in(user_ids, value_set=earlier).fill_null(-1).to_numpy(zero_copy_only=False)
    # Known users by their earlier rows, then the others by their first event.
    order = np.argsort(np.where(found < 0, len(earlier), found), kind="stable")
    kept = found[order][: int((found >= 0).sum())].astype(np.int64)
    return user_ids.take(pa.array(order)), order, kept


class _Dictionary:
    """A column of strings as codes: a Python object for each of millions would take longer than the fit."""

    def __init__(self) -> None:
        self._chunks: list[pa.DictionaryArray] = []

    def add(self, column: pa.ChunkedArray) -> None:
        """Add what a segment has of it."""
        self._chunks.extend(column.dictionary_encode().chunks)

    def joined(self) -> tuple[npt.NDArray[np.int64], pa.StringArray]:
        """Return the code of each row, and the strings by code."""
        if not self._chunks:
            return np.zeros(0, np.int64), pa.array([], type=pa.string())
        chunks = pa.chunked_array(self._chunks).unify_dictionaries().chunks
        codes = [chunk.indices.to_numpy(zero_copy_only=False) for chunk in chunks]
        return np.concatenate(codes), chunks[-1].dictionary


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
