"""What a fit of a ranking head is told, and what of it an earlier head can hand on.

Invariant: nothing here depends on the items or users of a fit.
"""

from dataclasses import dataclass

from factors.ranking.parameters import RankingParameters
from factors.ranking.type_weights import TypeWeight


@dataclass(frozen=True, slots=True, kw_only=True)
class RankingChoices:
    """`rank`, `sweeps`; `negatives`: weight of all pairs as a 0, for each event; `ridge`, `user_power`,
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


def choices_of(parameters: RankingParameters) -> RankingChoices:
    """Return the choices that a fit was made with."""
    return RankingChoices(
        rank=parameters.rank,
        negatives=parameters.negatives,
        ridge=parameters.ridge,
        user_power=parameters.user_power,
        item_power=parameters.item_power,
        neighbours=int(parameters.neighbours),
        neighbour_ridge=parameters.neighbour_ridge,
        sparse_weight=parameters.sparse_weight,
        recency_span=parameters.recency_span,
        recency_boost=parameters.recency_boost,
        gamma=parameters.gamma,
        decided=parameters.decided,
        types=parameters.types,
    )
