"""Which ratings of a file count: of a pair that stands more than once the latest, among equal times the last.

Invariant: memory is bounded. Pairs and times lie in temporary files, each pair in one of `PARTS`, and one of
these at a time is sorted. Beside that a row takes one byte.
"""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import IO, Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.ratings.event_types import RATING
from foldin.files.contexts import Mask
from foldin.files.rows import Batch
from processes.errors import CannotStartError

# 100 million ratings are sorted 1.6 million at a time, in 150 MB.
PARTS = 64
_FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd, so that no bit is lost
_ROW = np.dtype([("user", "<i8"), ("item", "<i8"), ("time", "<f8"), ("place", "<i8")])
Numbers = npt.NDArray[Any]


def replaced_ratings(pairs: Sequence[Numbers], order: Sequence[Numbers]) -> tuple[Mask, int]:
    """Return which ratings (n,) a later one of the same pair replaces, and how many pairs stand more than
    once. `pairs`: arrays (n,) that together name a pair. `order`: arrays (n,) of what makes one later, that
    of most weight last; among equal ones the place does.
    """
    by_pair = np.lexsort((*order, *pairs))
    same = np.ones(max(len(by_pair) - 1, 0), bool)
    for numbers in pairs:
        same &= numbers[by_pair[1:]] == numbers[by_pair[:-1]]
    replaced = np.zeros(len(by_pair), bool)
    replaced[by_pair[:-1][same]] = True
    return replaced, int((same & np.diff(same, prepend=False)).sum())


class FilePairs:
    """The pairs of a file, which is read in batches from its start. A row's place is the number of good rows
    before it. Rows of other types than ratings replace nothing: each of them is an event.
    """

    def __init__(self, parts: Sequence[IO[bytes]]) -> None:
        self._rows = 0
        self._parts = parts

    @classmethod
    @contextmanager
    def open(cls) -> Iterator[Self]:
        """Open the temporary files, which the end of the context removes."""
        with ExitStack() as files:
            yield cls([files.enter_context(tempfile.TemporaryFile()) for _ in range(PARTS)])

    def add(self, batch: Batch) -> None:
        """Add the next batch. Raises CannotStartError where the temporary files have no room."""
        rows = np.empty(len(batch), _ROW)
        rows["user"], rows["item"] = _hashes(batch.user_ids), _hashes(batch.item_ids)
        rows["time"] = batch.times
        rows["place"] = np.arange(self._rows, self._rows + len(batch))
        self._rows += len(batch)
        if batch.types is not None:
            rows = rows[pc.equal(batch.types, RATING.encode()).to_numpy(zero_copy_only=False)]
        part_of = (_mixed(rows) % np.uint64(PARTS)).astype(np.uint8)
        rows, ends = (
            rows[np.argsort(part_of, kind="stable")],
            np.cumsum(np.bincount(part_of, minlength=PARTS)),
        )
        try:
            for part, own in zip(self._parts, np.split(rows, ends[:-1]), strict=True):
                part.write(own.tobytes())
        except OSError as exc:
            raise CannotStartError(
                f"{tempfile.gettempdir()} does not take temporary files of {_ROW.itemsize} bytes a rating "
                f"({exc.strerror}): make room there, or name another folder in TMPDIR"
            ) from exc

    def replaced(self) -> tuple[Mask, int]:
        """Return which rows a later one replaces, by place, and how many pairs stand more than once."""
        replaced, repeated = np.zeros(self._rows, bool), 0
        for part in self._parts:
            part.seek(0)
            rows = np.frombuffer(part.read(), _ROW)
            # Sorting one number first leaves few rows for the sort of four.
            mixed = _mixed(rows)
            order = np.argsort(mixed)
            again = np.flatnonzero(np.diff(mixed[order]) == 0)
            rows = rows[np.union1d(order[again], order[again + 1])]
            found, count = replaced_ratings((rows["user"], rows["item"]), (rows["place"], rows["time"]))
            replaced[rows["place"][found]] = True
            repeated += count
        return replaced, repeated


def _mixed(rows: Numbers) -> npt.NDArray[np.uint64]:
    """Return a number for each row (n,), the same for the same pair."""
    mixed: npt.NDArray[np.uint64] = rows["user"].view(np.uint64) * _FACTOR ^ rows["item"].view(np.uint64)
    return mixed


def _hashes(ids: pa.Array) -> npt.NDArray[np.int64]:
    """Return a number for each id (n,), the same for equal ones. Two of ten million users have the same by a
    chance of one in 300,000.
    """
    encoded = ids.dictionary_encode()
    of_each = np.fromiter(map(hash, encoded.dictionary.to_pylist()), np.int64)
    of_row: npt.NDArray[np.int64] = of_each[encoded.indices.to_numpy(zero_copy_only=False)]
    return of_row
