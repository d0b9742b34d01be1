"""A data set of ratings in memory. Invariant: rows keep the order of their source, no pair stands twice."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from evaluation.question import Array, SideName
from factors import Columns, ContextKind, Ratings, Scale
from featurestore.settings import format_scale


@dataclass(frozen=True, slots=True)
class DataSet:
    """Ratings in the order of their source. `n_users`, `n_items`: of all of them, whatever is held out.
    `attributes`: of items and users, encoded, where there are any. `context_kinds`: of the fields of the
    context of the ratings.
    """

    name: str
    ratings: Ratings
    n_users: int
    n_items: int
    scale: Scale
    attributes: Mapping[SideName, Columns] = field(default_factory=dict)
    context_kinds: tuple[ContextKind, ...] = ()

    def part(self, rows: npt.NDArray[np.bool_] | npt.NDArray[np.int64]) -> Ratings:
        """Return the ratings of these rows, a mask or positions."""
        return self.ratings.take(rows)

    def digest(self) -> str:
        """Return 16 bytes, hexadecimal, that differ between data sets."""
        found = hashlib.blake2b(format_scale(self.scale).encode(), digest_size=16)
        ratings = self.ratings
        for column in (ratings.user_row, ratings.item_row, ratings.value, ratings.time):
            found.update(np.ascontiguousarray(column).tobytes())
        for column in self.attribute_arrays().values():
            found.update(np.ascontiguousarray(column).tobytes())
        if ratings.context is not None:
            found.update(repr(self.context_kinds).encode() + np.ascontiguousarray(ratings.context).tobytes())
        return found.hexdigest()

    def attribute_arrays(self) -> dict[str, Array]:
        """Return the attributes under the names that a `Question` has for them."""
        found: dict[str, Array] = {}
        for name, columns in self.attributes.items():
            found |= {f"{name}_columns": columns.entries(), f"{name}_center": columns.center}
        return found
