"""Which of a user's own ratings moved a score. Invariant: the base plus the contributions is the number that
the scorer gives.

The posterior mean is linear in the ratings: it is the mean without ratings, plus what the rated set adds to
the prior mean, plus `S sum_j t_j`, where `t_j` is what rating `j` adds to the linear term beyond what that
prior mean predicts. So the score before the link is a sum over the ratings. The link (clipping, or the
expected rating of the ordinal link) is not linear: the difference between the rating with and without the
history is divided in proportion to the parts before the link.
"""

import numpy as np

from factors.inference.histories import compress
from factors.model.columns import Columns
from factors.model.layout import unpack
from factors.model.types import Explanation, Float32s, Histories
from factors.posterior.posterior_model import PosteriorModel
from factors.serving.scoring import Scorer


def explain(
    posterior: PosteriorModel,
    items: Float32s,
    history: Histories,
    item_row: int,
    *,
    current: Float32s | None = None,
    attributes: Columns | None = None,
    context: Float32s | None = None,
) -> Explanation:
    """Return why the user with this one `history` gets the rating of `item_row`.

    `current` (1, user_width): the user's row, `attributes`: of the user, as for `fold_in_users`. `context`
    (1, fields): as for `Scorer.score`. Raises `ValueError` where `history` is not exactly one.
    """
    if len(history.offsets) != 2:
        raise ValueError(f"explain takes one history, not {len(history.offsets) - 1}")
    link, layout = posterior.link, posterior.parameters.users.layout
    user = posterior.fold_in_users(items, history, current=current, attributes=attributes)
    scorer = Scorer(posterior, items)
    mean, variance, _ = scorer.latent(
        user, np.zeros(1, dtype=np.int64), np.array([item_row]), context=context
    )
    rating = float(link.rating_moments(mean, variance)[0][0])
    data = compress(history, len(items), whole=False)
    item = items[item_row] if 0 <= item_row < len(items) else posterior.prior_item
    direction = np.append(item[layout.latent].astype(np.float64), 1.0)
    terms, implicit_terms = posterior.entry_terms(items, data, current, attributes)
    covariance = unpack(user[:, layout.covariance], layout.dim)[0]
    parts = terms @ (covariance @ direction) + implicit_terms @ direction
    # The variance stays that of the user with the history, so that only the mean moves between both ratings.
    base = float(link.rating_moments(mean - parts.sum(), variance)[0][0])
    moved = float(parts.sum())
    # Where the parts cancel out, their proportions are rounding errors.
    share = (rating - base) / moved if abs(moved) > 1e-12 else 0.0
    contributions = parts * share
    return Explanation(
        rating - float(contributions.sum()), history.other_row[data.source].astype(np.int32), contributions
    )
