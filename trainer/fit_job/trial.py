"""The trial of a fit: made without some of the ratings, and measured on these.

Invariant: where the live generation is measured too, it is on the same ratings, which neither has learned,
and with all others folded in, as services answer from it.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Protocol

import numpy as np

from factors import Columns, Fitted, Float32s, Histories, Int32s, Int64s, Ratings, SideName, posterior_of
from trainer.engines.base import Engine, FitTask, compared
from trainer.fit_job.ratings import FitInput
from trainer.fit_job.results import FitResult

# A twentieth of the ratings tells how good the fit is; the published one learns from these too.
_HELD_OUT_FRACTION = 0.05
# By so many the root mean square of normal errors is known to half a per cent.
_HELD_OUT_LIMIT = 20_000
# Of fewer ratings less than ten would be held out, which says nothing.
_HELD_OUT_FROM = 200
# At most so many of them by one user: a single account decides nothing.
_SHARE_OF_A_USER = 0.05
# With fewer the two losses differ by chance alone: then ratings are drawn from all.
_NEWEST_FROM = 100
# Ratings that are folded in at once: some 100 MB at rank 50.
_ENTRIES_AT_ONCE = 100_000
_NOT_DESCRIBED: Mapping[SideName, Columns] = MappingProxyType({})


class _FoldIn(Protocol):
    def __call__(
        self, histories: Histories, *, current: Float32s, attributes: Columns | None
    ) -> Float32s: ...


def try_out(
    engine: Engine,
    task: FitTask,
    data: FitInput,
    live: FitResult | None,
    described: Mapping[SideName, Columns] = _NOT_DESCRIBED,
) -> tuple[Fitted | None, dict[str, float]]:
    """Return a fit of a part of the ratings, None where there are too few, and what it is like on the others.

    `live`: the fit of the live generation; `described`: the sides as that has their
    attributes. `newest` in
    what is returned: on how many ratings that one was measured, too, 0 for none.
    """
    size = len(data.ratings.value)
    if size < _HELD_OUT_FROM:
        return None, {}
    wanted = min(_HELD_OUT_LIMIT, round(size * _HELD_OUT_FRACTION))
    held_out = newest(data, wanted)
    against_live = live is not None and len(held_out) >= _NEWEST_FROM
    if not against_live:
        held_out = task.rng.choice(size, wanted, replace=False)
    is_known = np.ones(size, dtype=bool)
    is_known[held_out] = False
    known, tried = data.ratings.take(is_known), data.ratings.take(held_out)
    trial = engine.fit(replace(task, ratings=known))
    # "unseen": under this name in the metrics of every generation that was ever stored.
    metrics = {**engine.held_out(trial, known, tried), "unseen": float(len(held_out)), "newest": 0.0}
    if live is not None and against_live and live.model.feedback == trial.model.feedback:
        served = as_served(live, data, known, described)
        own, other = (engine.losses(fitted, known, tried) for fitted in (trial, served))
        metrics |= {**compared(own, other, tried.user_row[: len(own)]), "newest": float(len(own))}
    return trial, metrics


def newest(data: FitInput, wanted: int) -> Int64s:
    """Return the positions of at most so many of the newest ratings that the earlier fit has not learned."""
    # The newer half at most: the trial is to learn the others, and to be judged with what that did to it.
    newest_first = data.unlearned[len(data.unlearned) // 2 :][::-1]
    user_row = data.ratings.user_row[newest_first]
    by_user = np.argsort(user_row, kind="stable")
    first = np.searchsorted(user_row[by_user], user_row[by_user])
    nth_of_user = np.empty(len(by_user), dtype=np.int64)
    nth_of_user[by_user] = np.arange(len(by_user)) - first
    return newest_first[nth_of_user < max(1.0, _SHARE_OF_A_USER * wanted)][:wanted]


def as_served(
    live: FitResult, data: FitInput, known: Ratings, described: Mapping[SideName, Columns] = _NOT_DESCRIBED
) -> Fitted:
    """Return an earlier fit as it answers when the ratings `known` have been folded into it, first the users,
    then the items, which have the attributes `described`.
    """
    posterior = posterior_of(live.model)
    users = np.repeat(posterior.prior_user[None], data.n_users, axis=0)
    users[: len(data.kept)] = live.users[data.kept]
    items = np.repeat(posterior.prior_item[None], data.n_items, axis=0)
    n_items = min(len(live.items), data.n_items)
    items[:n_items] = live.items[:n_items]
    user_row, item_row = known.user_row, known.item_row
    fold_in, of_users = partial(posterior.fold_in_users, items), described.get("user")
    users = _folded(fold_in, user_row, item_row, known, users, described=of_users)
    fold_in, of_items = partial(posterior.fold_in_items, users), described.get("item")
    items = _folded(fold_in, item_row, user_row, known, items, described=of_items)
    return Fitted(live.model, users, items)


def _folded(
    fold_in: _FoldIn,
    row: Int32s,
    other_row: Int32s,
    ratings: Ratings,
    current: Float32s,
    *,
    described: Columns | None = None,
) -> Float32s:
    """Return the rows (b, width) that `fold_in` gives of `ratings` by `row` (n,), some of them at a time."""
    order = np.argsort(row, kind="stable")
    ends = np.cumsum(np.bincount(row, minlength=len(current)))
    rows, start, first = np.empty_like(current), 0, 0
    while start < len(current):
        # At least one, however many ratings it has.
        stop = max(start + 1, int(np.searchsorted(ends, first + _ENTRIES_AT_ONCE, side="right")))
        some = order[first : ends[stop - 1]]
        offsets = np.concatenate([[0], ends[start:stop] - first])
        context = None if ratings.context is None else ratings.context[some]
        columns = (other_row[some], ratings.value[some], ratings.time[some])
        part = Histories(offsets, *columns, context=context)
        attributes = None if described is None else described.take(np.arange(start, stop))
        rows[start:stop] = fold_in(part, current=current[start:stop], attributes=attributes)
        start, first = stop, int(ends[stop - 1])
    return rows
