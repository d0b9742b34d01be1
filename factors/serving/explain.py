"""Which of a user's own ratings moved a score. Invariant: base plus contributions is the number that `score`
gives.

The posterior mean is linear in what was rated: with `m0` the prior mean of the user, `x = m0 + S sum_j t_j`
where `t_j` is what rating `j` adds to the linear term beyond what `m0` foretells, and `m0` itself is a sum
over the rated set. So the score before the link is a sum over the ratings. The link (clipping, or the
expected rating of the ordinal link) is no sum: the distance between the rating with and without the history
is shared out in proportion to the parts before it.
"""

import numpy as np

from factors.inference import implicit_feedback as confidence
from factors.inference.half_step import entry_terms
from factors.inference.histories import compress
from factors.model.layout import unpack
from factors.model.links import rating_moments
from factors.model.parameters import from_model
from factors.model.quantized_rows import QuantizedTable, item_codec
from factors.model.types import Explanation, Float32s, Histories, Int32s, Model
from factors.serving.fold_in import came_after, fold_in_users
from factors.serving.scoring import Scorer


def explain(
    model: Model, items: Float32s, history: Histories, item_row: int, *, current: Float32s | None = None
) -> Explanation:
    """Why the user with this one `history` gets the rating that he gets for `item_row`.

    `current` (1, user_width): his row, as for `fold_in_users`. Raises `ValueError` where `history` is not
    exactly one.
    """
    if len(history.offsets) != 2:
        raise ValueError(f"explain takes one history, not {len(history.offsets) - 1}")
    parameters = from_model(model)
    layout = parameters.users.layout
    scorer = Scorer(model, items)
    user = fold_in_users(model, items, history, current=current)
    zero, rows = np.zeros(1, dtype=np.int64), np.array([item_row])
    mean, variance, _ = scorer.latent(user, zero, rows)
    rating = float(rating_moments(parameters, mean, variance)[0][0])
    data = compress(history, len(items))
    item = items[item_row] if 0 <= item_row < len(items) else scorer.prior_item
    direction = np.append(item[layout.latent].astype(np.float64), 1.0)
    if confidence.is_implicit(model):
        terms = confidence.entry_terms(model, items, data)
        implicit_terms = np.zeros_like(terms)
    else:
        new = came_after(parameters, "user", current)
        table = QuantizedTable(items, item_codec(parameters))
        terms, implicit_terms = entry_terms(
            parameters, "user", table, data, new=new is not None and bool(new[0])
        )
    covariance = unpack(user[:, layout.covariance], layout.dim)[0]
    parts = terms @ (covariance @ direction) + implicit_terms @ direction
    # Without the history the score stands at the prior mean; its spread is kept, so that only the mean moves.
    start = mean - parts.sum()
    base = float(rating_moments(parameters, start, variance)[0][0])
    moved = float(parts.sum())
    share = (rating - base) / moved if abs(moved) > 1e-12 else 0.0
    contributions = parts * share
    source = history.other_row[data.source] if len(data.source) else np.zeros(0, dtype=np.int32)
    rated: Int32s = source.astype(np.int32)
    return Explanation(rating - float(contributions.sum()), rated, contributions)
