"""The squares of a ranking head as those of a library that knows confidences and one ridge.

Invariant: what a library gives begins a fit, and is published by no other way than through the half-steps of
the head, so that folding in gives what the fit gives.

Divided by the weight `a0` of a pair, the squares of the head (`factors/ranking/half_steps.py`) have 1 for
each pair and `w / a0` more for an event of weight `w`. Hu, Koren and Volinsky (2008) have the confidence
`c = 1 + w / a0` there. With one ridge for users and one for items, `|x|` and `|y|` grow and shrink against
each other, and the root of the product of the two ridges alone decides; activities and the ridge for each
event are the head's own.
"""

from collections.abc import Callable

import numpy as np
import scipy.sparse as sp

from factors.inference.histories import Compressed
from factors.model.types import Float32s, UInt8s
from factors.ranking.choices import RankingChoices
from factors.ranking.type_weights import TypeTable

Factorize = Callable[[sp.csr_matrix, int, float], Float32s]
"""What a library does: item factors (n_items, r) from confidences (n_users, n_items), which are negative
where the user did not want the item, the rank r and the ridge.
"""


def first_items(
    factorize: Factorize, by_user: Compressed, n_items: int, choices: RankingChoices, codes: UInt8s | None
) -> Float32s:
    """Return the item factors (n_items, r) that `factorize` gives for the events `by_user`, as a head with
    these `choices` has them. `codes`: as in `fit_with`.
    """
    weight, target = TypeTable.of(choices.types).weights(codes, by_user)
    weight = np.ones(len(by_user.other)) if weight is None else weight
    wanted = np.ones(len(weight)) if target is None else target
    total, n_users = float(weight @ wanted), by_user.rows
    background = choices.negatives * total / (n_users * n_items)
    confidence = np.where(wanted > 0, 1.0, -1.0) * (1.0 + weight / background)
    # The mean ridge of a row, for a pair's weight.
    of_users, of_items = (
        choices.ridge * (total / rows / background + others)
        for rows, others in ((n_users, n_items), (n_items, n_users))
    )
    matrix = sp.csr_matrix(
        (confidence.astype(np.float32), by_user.other.astype(np.int32), by_user.indptr),
        shape=(n_users, n_items),
    )
    rank = max(1, min(choices.rank, n_users, n_items))
    items = factorize(matrix, rank, float(np.sqrt(of_users * of_items)))
    return np.asarray(items * (of_users / of_items) ** 0.25, np.float32)
