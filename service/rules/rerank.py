"""The order and the number of a list: boosts, diversity, caps and pinned places, as functions of values.

Invariant: the same candidates give the same list; of equals the one that was ranked first comes first.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from factors import Bools, Float32s, Float64s

T = TypeVar("T")


def boost_groups(boosts: Sequence[tuple[float, Bools]], allowed: Bools) -> list[tuple[float, Bools]]:
    """Return the rows of `allowed` (n,) by the factor that `boosts` multiply their scores by: a factor, and
    which rows have it (n,). Boosts, at most 8, that hold of the same row multiply each other.

    The best of each group, multiplied, have the best of all among them: inside a group no order changes.
    """
    code = np.zeros(len(allowed), dtype=np.uint8)
    factors = np.ones(1 << len(boosts))
    for bit, (factor, mask) in enumerate(boosts):
        code |= mask.view(np.uint8) << np.uint8(bit)
        factors[np.arange(len(factors)) >> bit & 1 == 1] *= factor
    groups = []
    for factor in np.unique(factors)[::-1]:
        rows = (factors == factor)[code]
        rows &= allowed
        if rows.any():
            groups.append((float(factor), rows))
    return groups


class Selection:
    """A list of `wanted` items that is filled from candidates, best first.

    `cap`: how many of a category it may have; an item counts in each of its categories. `trade_off`: the
    lambda of maximal marginal relevance (Carbonell and Goldstein 1998): each next item has the largest
    `lambda * relevance - (1 - lambda) * similarity` to the most similar item that is chosen.
    """

    def __init__(self, wanted: int, *, cap: int | None = None, trade_off: float | None = None) -> None:
        self._left = wanted
        self._cap = cap
        self._trade_off = trade_off
        self._counts: Counter[str] = Counter()
        self._chosen: list[Float32s] = []

    def hold(self, categories: Sequence[Sequence[str]], vectors: Float32s | None) -> None:
        """Count items that are in the list anyhow; `vectors` (m, r) as of `take`."""
        for names in categories:
            self._counts.update(names)
        self._chosen += [] if vectors is None else list(vectors)

    @property
    def n_chosen(self) -> int:
        """How many items another one is compared with."""
        return len(self._chosen)

    @property
    def full(self) -> bool:
        """Whether the list has all that is wanted."""
        return self._left == 0

    def closed(self) -> list[str]:
        """Return the categories that have no place left, in order."""
        return (
            []
            if self._cap is None
            else sorted(name for name, count in self._counts.items() if count >= self._cap)
        )

    def take(
        self,
        categories: Sequence[Sequence[str]],
        relevance: Float64s,
        vectors: Float32s | None,
        most: int | None = None,
    ) -> list[int]:
        """Choose of candidates, in their ranked order, `most` at most, and return their places in the order
        chosen.

        `relevance` (m,) is from 0 to 1; `vectors` (m, r) have length 1 and are needed for a trade-off alone.
        """
        if self._trade_off is None or vectors is None:
            return self._first(categories)
        most = len(relevance) if most is None else most
        return self._marginal(categories, relevance, vectors, self._trade_off, most)

    def _first(self, categories: Sequence[Sequence[str]]) -> list[int]:
        taken: list[int] = []
        for place, names in enumerate(categories):
            if self.full:
                break
            if self._fits(names):
                self._count(names)
                taken.append(place)
        return taken

    def _marginal(
        self,
        categories: Sequence[Sequence[str]],
        relevance: Float64s,
        vectors: Float32s,
        trade_off: float,
        most: int,
    ) -> list[int]:
        taken: list[int] = []
        nearest = np.full(len(relevance), -np.inf)
        for chosen in self._chosen:
            np.maximum(nearest, vectors @ chosen, out=nearest)
        open_places: Bools = np.ones(len(relevance), dtype=np.bool_)
        while not self.full and len(taken) < most and open_places.any():
            # To an empty list all are alike.
            similarity = nearest if self._chosen else np.zeros(len(relevance))
            value = np.where(open_places, trade_off * relevance - (1 - trade_off) * similarity, -np.inf)
            place = int(value.argmax())
            open_places[place] = False
            if self._fits(categories[place]):
                self._count(categories[place])
                self._chosen.append(vectors[place])
                np.maximum(nearest, vectors @ vectors[place], out=nearest)
                taken.append(place)
        return taken

    def _fits(self, names: Sequence[str]) -> bool:
        return self._cap is None or all(self._counts[name] < self._cap for name in names)

    def _count(self, names: Sequence[str]) -> None:
        self._left -= 1
        self._counts.update(names)


def with_pinned(ranked: Sequence[T], pinned: Mapping[int, T]) -> list[T]:
    """Return `ranked` with the items of `pinned` at their positions, from 1 on; behind its end, in order."""
    rest = iter(ranked)
    listed: list[T] = []
    places = sorted(pinned)
    for position in places:
        while len(listed) + 1 < position and (item := next(rest, None)) is not None:
            listed.append(item)
        listed.append(pinned[position])
    return [*listed, *rest]


def unit(vectors: npt.NDArray[np.floating[Any]]) -> Float32s:
    """Return `vectors` (m, r) at length 1; one of length 0 stays."""
    lengths = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))[:, None]
    return np.asarray(vectors / np.where(lengths > 0, lengths, 1.0), dtype=np.float32)
