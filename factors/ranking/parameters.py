"""What a ranking head is fitted with, what it knows besides its tables, and the weights that follow from it.

Invariant: the fit, folding in and explaining take the weight of an event and the ridge of a row from here.
"""

from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from factors.errors import ModelUnreadable
from factors.inference.histories import Compressed
from factors.model.types import Float64s, Int64s
from factors.ranking.half_steps import Prior
from factors.ranking.type_weights import TypeWeight

SideName = Literal["user", "item"]
Counts = npt.NDArray[np.integer[Any]] | Float64s
"""Events of rows: whole numbers, or where events have weights the sum of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankingChoices:
    """What a fit is told, and what of it an earlier head can hand on; nothing depends on its items or users.

    `rank`, `sweeps`; `negatives`: weight of all pairs as a 0, for each event; `ridge`, `user_power`,
    `item_power`, `recency_span`, `recency_boost`, `gamma`: see `RankingParameters`; `neighbours` an item and
    `neighbour_ridge` of the sparse term, which counts `sparse_weight`; `decided`: events that all this was
    chosen by; `types`: what events that are no ratings count.

    The defaults are for sets that are too small to choose by: the middle of what sets of some size choose.
    """

    rank: int = 64
    sweeps: int = 12
    negatives: float = 8.0
    ridge: float = 0.006
    user_power: float = 0.0
    item_power: float = 0.0
    neighbours: int = 100
    neighbour_ridge: float = 100.0
    sparse_weight: float = 1.0
    recency_span: float = 10.0
    recency_boost: float = 0.0
    gamma: float = 0.5
    decided: float = 0.0
    types: tuple[TypeWeight, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RankingParameters:
    """Numbers and small arrays of a head of rank r; the formulas are in `factors/ranking/half_steps.py`.

    `background`: weight of each pair of a typical user and a typical item as a 0. `user_power`,
    `item_power`: how that weight grows with the number of events of a row; `user_unit`, `item_unit`: mean of
    `(n + 1) ^ power` over the rows of the fit, of which there were `n_users` and `n_items`. `ridge`: for each
    event. `recency_span` (events), `recency_boost`: an event with `k` later ones of its user counts
    `1 + boost exp(-k / span)`, so that old ones are not forgotten; a boost of 0 means that all count the
    same. `gamma`: power of the expected rating in what is served. `negatives`: the weight of all pairs for
    each event; `neighbours` an item, `neighbour_ridge`, `sparse_weight`: see `RankingChoices`; `decided`:
    events that all this was chosen by, 0 for none. `noise`: variance of a preference round its score.
    `user_mean` (r,): the users' prior mean. `user_gram`, `item_gram` (r, r): what the pairs that are no
    events add to the precision of a typical user and of a typical item. `types`: what events that are no
    ratings count; the number of events of a row is then the weight of those that were wanted.
    """

    background: float
    user_power: float
    item_power: float
    user_unit: float
    item_unit: float
    n_users: float
    n_items: float
    ridge: float
    recency_span: float
    recency_boost: float
    gamma: float
    negatives: float
    neighbours: float
    neighbour_ridge: float
    sparse_weight: float
    decided: float
    noise: float
    user_mean: Float64s
    user_gram: Float64s
    item_gram: Float64s
    types: tuple[TypeWeight, ...] = ()

    @property
    def rank(self) -> int:
        """Number of latent dimensions."""
        return len(self.user_mean)

    def check(self) -> None:
        """Raise `ModelUnreadable` unless every fold-in with these is possible."""
        numbers = [getattr(self, field.name) for field in fields(self) if field.type == float]  # noqa: E721
        arrays = (self.user_mean, self.user_gram, self.item_gram)
        if not all(np.isfinite(value).all() for value in (*numbers, *arrays)):
            raise ModelUnreadable("a ranking head whose parameters are not finite")
        positive = (self.background, self.user_unit, self.item_unit, self.ridge, self.recency_span)
        if (
            min(positive) <= 0
            or min(self.recency_boost, self.gamma, self.noise, self.decided, *self.shape) < 0
        ):
            raise ModelUnreadable("a ranking head whose parameters are out of their range")
        for gram in (self.user_gram, self.item_gram):
            if gram.shape != (self.rank, self.rank) or not np.allclose(gram, gram.T):
                raise ModelUnreadable("a ranking head whose Gram matrices are not symmetric")

    @property
    def shape(self) -> tuple[float, float]:
        """Users and items of the fit."""
        return self.n_users, self.n_items

    @property
    def events(self) -> float:
        """Events of the fit, or the weight of those that were wanted."""
        return self.background * self.n_users * self.n_items / max(self.negatives, 1e-12)

    def unknown(self, counts: Counts) -> Float64s:
        """Return how much of what items with `counts` events (b,) are chosen for these do not tell yet: half
        of it where they are as many as the items of the fit have on average.
        """
        usual = self.events / max(self.n_items, 1.0)
        return np.asarray(usual / (usual + np.asarray(counts, np.float64)))

    def activity(self, side: SideName, counts: Counts) -> Float64s:
        """Return by how much the pairs of rows (b,) with `counts` events weigh more than a typical row's."""
        power, unit = (
            (self.user_power, self.user_unit) if side == "user" else (self.item_power, self.item_unit)
        )
        return np.asarray((counts + 1.0) ** power / unit)

    def ridges(self, side: SideName, counts: Counts) -> Float64s:
        """Return the ridge (b,) of rows with `counts` events: in proportion to the weight of all their
        pairs.
        """
        others = self.n_items if side == "user" else self.n_users
        return np.asarray(self.ridge * (counts + self.background * others * self.activity(side, counts)))

    def prior(self, side: SideName, counts: Counts) -> Prior:
        """Return what rows (b,) with `counts` events have beside these: users a mean of their own, too."""
        gram, mean = (self.user_gram, self.user_mean) if side == "user" else (self.item_gram, None)
        return Prior(gram, self.activity(side, counts), self.ridges(side, counts), mean)

    def event_weights(self, data: Compressed) -> Float64s:
        """Return how much each event (n,) of the users `data` counts by its recency."""
        if self.recency_boost == 0.0:
            return np.ones(len(data.other))
        return recency_weights(later_events(data), self.recency_boost, self.recency_span)


# Not the sweeps; the rank is that of the tables.
KEPT_CHOICES = {each.name for each in fields(RankingChoices)} - {"rank", "sweeps"}


def choices_of(parameters: RankingParameters) -> RankingChoices:
    """Return the choices that a fit was made with."""
    kept: dict[str, Any] = {name: getattr(parameters, name) for name in KEPT_CHOICES}
    return RankingChoices(**{**kept, "rank": parameters.rank, "neighbours": int(parameters.neighbours)})


def recency_weights(later: Int64s, boost: float, span: float) -> Float64s:
    """Return how much events (n,) count that so many others come after, see `RankingParameters`."""
    return np.asarray(1.0 + boost * np.exp(-later / span))


def later_events(data: Compressed) -> Int64s:
    """Return how many events of its row come after each event (n,).

    By their times where all times of the row are known, and as they were written otherwise.
    """
    row, n = data.row, len(data.other)
    unknown = np.bincount(row, np.isnan(data.time), minlength=data.rows) > 0
    order = np.lexsort((data.source, np.where(unknown[row], 0.0, data.time), row))
    later = np.empty(n, dtype=np.int64)
    # Rows are contiguous, in `order` as in `data`.
    later[order] = data.indptr[row + 1] - 1 - np.arange(n)
    return later
