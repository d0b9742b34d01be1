"""The layout of a table row, and symmetric matrices as packed vectors.

Invariant: no other module counts columns, but the compiled loops, which take numbers alone.

A row of either side, all float numbers, is

    count | rating mean | mean (k+1) | covariance (k+1)(k+2)/2 | implicit effect (k+1) | session keys (J)
    | effects (J) | variances (J) | velocity (k+1) | anchor time

`mean` and `covariance` are the posterior of `[latent (k), bias]`. The covariance is packed row by row from
its lower triangle, so the latent block comes first and the bias row last. `implicit effect` is what a history
with this row in it adds to the prior mean of its own row. The rating mean of a row without ratings is 1 where
its mean rests on attributes, else 0. Session keys name the J sessions (days of a user)
that have an effect. Of a side that moves, `mean` is where the row stood at `anchor time`, that of its latest
rating, and `velocity` where it was going (`motion`). Users are stored like this; an item has this row once it
is read out of its stored one (`quantized_rows`), whose first numbers, up to the mean, are the same.
"""

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from factors.errors import ModelUnreadable
from factors.model.types import Float64s, Int64s, Model

# Covariances of rows fill memory with its square: 33,000 numbers a row at this rank.
MAX_RANK = 256

# Columns that do not depend on the rank; the mean begins at the last. A row without ratings has no rating
# mean: there 1 says that its rating rests on attributes, -1 that its relevance in the ranking head does, 2
# that both do. What came before a head had this mark reads those above 0 alone.
COUNT, RATING_MEAN, MEAN = 0, 1, 2
# Keys are not below 0, so that no time has this one.
NO_SESSION = -1.0
# And the key of the last slot where it says what a session adds that has no slot.
REST_KEY = -1.5
# Float32 tells whole numbers apart up to 2^24: keys wrap well below, so that any timestamp gives an exact
# key.
SESSION_KEYS = 2.0**22


FloatTable = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the parts of a row stand: `rank` latent dimensions, `slots` sessions, a velocity if `moving`."""

    rank: int
    slots: int
    moving: bool = False

    @property
    def dim(self) -> int:
        """Length of the posterior mean: the latent part and the bias."""
        return self.rank + 1

    @property
    def packed(self) -> int:
        """Length of a packed covariance."""
        return self.dim * (self.dim + 1) // 2

    @property
    def width(self) -> int:
        """Numbers in a row."""
        return self._sessions + 3 * self.slots + self.moving * (self.dim + 1)

    @property
    def _sessions(self) -> int:
        return MEAN + 2 * self.dim + self.packed

    @property
    def mean(self) -> slice:
        """The posterior mean `[latent, bias]`."""
        return slice(MEAN, MEAN + self.dim)

    @property
    def latent(self) -> slice:
        """The latent part of the posterior mean."""
        return slice(MEAN, MEAN + self.rank)

    @property
    def bias(self) -> int:
        """The bias of the posterior mean."""
        return MEAN + self.rank

    @property
    def covariance(self) -> slice:
        """The packed posterior covariance."""
        start = MEAN + self.dim
        return slice(start, start + self.packed)

    @property
    def implicit_effect(self) -> slice:
        """What this row in a history adds to a prior mean of the other side."""
        start = MEAN + self.dim + self.packed
        return slice(start, start + self.dim)

    @property
    def keys(self) -> slice:
        """Session keys."""
        return slice(self._sessions, self._sessions + self.slots)

    @property
    def effects(self) -> slice:
        """Effects of the sessions."""
        start = self._sessions + self.slots
        return slice(start, start + self.slots)

    @property
    def variances(self) -> slice:
        """Variances of the effects of the sessions."""
        start = self._sessions + 2 * self.slots
        return slice(start, start + self.slots)

    @property
    def velocity(self) -> slice:
        """The mean velocity of a row that moves; empty for others."""
        start = self._sessions + 3 * self.slots
        return slice(start, start + self.moving * self.dim)

    @property
    def anchor_time(self) -> int:
        """When a row that moves stood at its mean."""
        return self._sessions + 3 * self.slots + self.dim


def code_words(layout: Layout) -> int:
    """Words of 32 bits that the covariance of a row takes where it is stored as codes (`quantized_rows`)."""
    return (layout.packed + 1) // 2


def stored_width(layout: Layout) -> int:
    """Words of a stored row: the covariance is a scale and codes there."""
    return layout.width - layout.packed + 1 + code_words(layout)


def layout_of(model: Model, name: Literal["user", "item"]) -> Layout:
    """Return the layout of the rows of this side of `model`; of items, once they are read out of the stored
    ones. Raises `ModelUnreadable` where its width fits no layout.
    """
    bare = Layout(model.rank, 0, f"{name}_drift" in model.parameters)
    width = model.user_width if name == "user" else model.item_width
    slots, rest = divmod(width - (bare.width if name == "user" else stored_width(bare)), 3)
    if slots < 0 or rest:
        raise ModelUnreadable(f"{name} rows of {width} numbers do not fit rank {model.rank}")
    return replace(bare, slots=slots)


def user_layout(model: Model) -> Layout:
    """Return the layout of the user rows of `model`."""
    return layout_of(model, "user")


def item_layout(model: Model) -> Layout:
    """Return the layout of the item rows of `model`, once they are read out of the stored ones."""
    return layout_of(model, "item")


@lru_cache(maxsize=64)
def triangle(dim: int) -> tuple[Int64s, Int64s, Float64s]:
    """Return row and column of each packed entry, and how often it stands in the full matrix (1 or 2). Do not
    write to them.
    """
    rows, columns = np.tril_indices(dim)
    multiplicity = np.where(rows == columns, 1.0, 2.0)
    # They are shared by all callers.
    for array in (rows, columns, multiplicity):
        array.setflags(write=False)
    return rows.astype(np.int64), columns.astype(np.int64), multiplicity


def pack(matrices: Float64s) -> Float64s:
    """Symmetric matrices (b, d, d) as packed lower triangles (b, d(d+1)/2)."""
    dim = matrices.shape[-1]
    packed: Float64s = matrices.reshape(*matrices.shape[:-2], dim * dim).take(_packed_index(dim), axis=-1)
    return packed


@lru_cache(maxsize=64)
def _packed_index(dim: int) -> Int64s:
    rows, columns, _ = triangle(dim)
    return rows * dim + columns


@lru_cache(maxsize=64)
def _full_index(dim: int) -> Int64s:
    index = np.zeros((dim, dim), dtype=np.int64)
    rows, columns, _ = triangle(dim)
    index[rows, columns] = index[columns, rows] = np.arange(len(rows))
    return index.ravel()


def unpack(packed: FloatTable, dim: int) -> Float64s:
    """Return packed lower triangles (b, d(d+1)/2) as symmetric matrices (b, d, d)."""
    full = packed.take(_full_index(dim), axis=-1).astype(np.float64, copy=False)
    return full.reshape(*packed.shape[:-1], dim, dim)


def outer(vectors: Float64s) -> Float64s:
    """Return packed outer products (b, d(d+1)/2) of vectors (b, d) with themselves."""
    dim = vectors.shape[-1]
    # From so many vectors on a product for each row of the triangle is faster than indexing by columns.
    if len(vectors) < 64:
        rows, columns, _ = triangle(dim)
        return np.asarray(vectors[:, rows] * vectors[:, columns])
    products = np.empty((len(vectors), dim * (dim + 1) // 2))
    for row in range(dim):
        start = row * (row + 1) // 2
        np.multiply(vectors[:, : row + 1], vectors[:, row, None], out=products[:, start : start + row + 1])
    return products


def session_keys(time: Float64s, session_length: float) -> Float64s:
    """Return the key of the session of each time; NaN where the time is unknown or the length is 0."""
    if session_length <= 0:
        return np.full(np.shape(time), np.nan)
    with np.errstate(invalid="ignore", over="ignore"):
        return np.asarray(np.mod(np.floor(time / session_length), SESSION_KEYS))


def sitting_keys(key: Float64s, ratio: float) -> Float64s:
    """Return the keys of the sittings of sessions with these keys: below that of no session."""
    return np.asarray(-2.0 - np.floor(key / ratio))
