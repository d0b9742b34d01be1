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
from factors.model.types import Explanation, Float32s, Float64s, Histories, Int32s, Int64s
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
    rows = np.array([item_row])
    rating, rated, parts = contributions(
        posterior, items, history, rows, current=current, attributes=attributes, context=context
    )
    return Explanation(float(rating[0]) - float(parts[:, 0].sum()), rated, parts[:, 0])


def contributions(
    posterior: PosteriorModel,
    items: Float32s,
    history: Histories,
    item_rows: Int64s,
    *,
    current: Float32s | None = None,
    attributes: Columns | None = None,
    context: Float32s | None = None,
) -> tuple[Float64s, Int32s, Float64s]:
    """Return the ratings of items (m,), what the user rated (n,), and by how much each of these moved them:
    (n, m). Otherwise as `explain`.
    """
    if len(history.offsets) != 2:
        raise ValueError(f"explain takes one history, not {len(history.offsets) - 1}")
    link, layout = posterior.link, posterior.parameters.users.layout
    user = posterior.fold_in_users(items, history, current=current, attributes=attributes)
    scorer, alone = Scorer(posterior, items), np.zeros(len(item_rows), dtype=np.int64)
    mean, variance, _ = scorer.latent(user, alone, item_rows, context=context)
    rating = link.rating_moments(mean, variance)[0]
    data = compress(history, len(items), whole=False)
    known = (item_rows >= 0) & (item_rows < len(items))
    directions = np.ones((layout.dim, len(item_rows)))
    directions[:-1] = posterior.prior_item[layout.latent][:, None]
    directions[:-1, known] = items[item_rows[known]][:, layout.latent].T
    terms, implicit_terms = posterior.entry_terms(items, data, current, attributes)
    covariance = unpack(user[:, layout.covariance], layout.dim)[0]
    parts = terms @ (covariance @ directions) + implicit_terms @ directions
    # The variance stays that of the user with the history, so that only the mean moves between both ratings.
    moved = parts.sum(axis=0)
    base = link.rating_moments(mean - moved, variance)[0]
    # Where the parts cancel out, their proportions are rounding errors.
    share = np.divide(rating - base, moved, out=np.zeros_like(moved), where=np.abs(moved) > 1e-12)
    return rating, history.other_row[data.source].astype(np.int32), np.asarray(parts * share)
