"""A data set of ratings in memory. Invariant: rows keep the order of their source, no pair stands twice."""

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from factors import Ratings, Scale
from featurestore.settings import format_scale


@dataclass(frozen=True, slots=True)
class DataSet:
    """Ratings in the order of their source. `n_users`, `n_items`: of all of them, whatever is held out."""

    name: str
    ratings: Ratings
    n_users: int
    n_items: int
    scale: Scale

    def part(self, rows: npt.NDArray[np.bool_] | npt.NDArray[np.int64]) -> Ratings:
        """Return the ratings of these rows, a mask or positions."""
        ratings = self.ratings
        return Ratings(
            ratings.user_row[rows], ratings.item_row[rows], ratings.value[rows], ratings.time[rows]
        )

    def digest(self) -> str:
        """Return 16 bytes, hexadecimal, that differ between data sets."""
        found = hashlib.blake2b(format_scale(self.scale).encode(), digest_size=16)
        ratings = self.ratings
        for column in (ratings.user_row, ratings.item_row, ratings.value, ratings.time):
            found.update(np.ascontiguousarray(column).tobytes())
        return found.hexdigest()
