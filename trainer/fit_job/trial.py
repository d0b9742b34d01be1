"""The trial of a fit: made without some of the ratings, and measured on these.

Invariant: where the live generation is measured too, it is on the same ratings, which neither has learned,
and with all others of their users folded in, and of their items where these have more than a few new ones.
"""

from collections.abc import Mapping
from functools import partial
from typing import Protocol

import numpy as np

from factors import (
    Bools,
    Columns,
    Fitted,
    Float32s,
    HalfStepBackend,
    Histories,
    Int32s,
    Int64s,
    NumpyBackend,
    Ratings,
    SideName,
    choose_backend,
    order_by_pair,
    posterior_of,
)
from trainer.engines.base import Engine, FitTask, Trial, compared
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
# New ratings that are so small a part of an item's move its scores by about as small a part of how far they
# are from these.
_FEW_NEW = 0.01


class _FoldIn(Protocol):
    def __call__(
        self,
        histories: Histories,
        *,
        current: Float32s,
        attributes: Columns | None,
        backend: HalfStepBackend | None,
    ) -> Float32s: ...


def try_out(
    engine: Engine,
    task: FitTask,
    data: FitInput,
    live: FitResult | None,
    described: Mapping[SideName, Columns],
    *,
    threads: int,
) -> tuple[Trial | None, dict[str, float]]:
    """Return a fit that holds ratings out, None where there are too few, and what it is like on these.

    `live`: the fit of the live generation; `described`: the sides as that has their attributes. `threads`: to
    fold in with. `newest` in what is returned: on how many ratings that one was measured, too, 0 for none.
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
    judge, before = engine.judge(known, tried), None
    if live is not None and against_live and live.model.feedback == engine.feedback:
        is_new = np.zeros(size, dtype=bool)
        is_new[data.unlearned] = True
        served = partial(as_served, described=described, asked=tried, threads=threads)
        before = judge.losses(served(live, data, known, is_new[is_known]))
        del is_new
    # All that reads them comes before the fit has an order of its own: both would be there at once.
    del known, is_known
    trial = engine.trial(task, held_out)
    fitted = trial.fitted()
    # "unseen": under this name in the metrics of every generation that was ever stored.
    metrics = {**judge.metrics(fitted), "unseen": float(len(held_out)), "newest": 0.0}
    if before is not None:
        own = judge.losses(fitted)
        metrics |= {**compared(own, before, tried.user_row[: len(own)]), "newest": float(len(own))}
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
    chosen = newest_first[nth_of_user < max(1.0, _SHARE_OF_A_USER * wanted)]
    return chosen[:wanted].astype(np.int64)


def as_served(
    live: FitResult,
    data: FitInput,
    known: Ratings,
    is_new: Bools,
    *,
    described: Mapping[SideName, Columns],
    asked: Ratings | None = None,
    threads: int = 1,
) -> Fitted:
    """Return an earlier fit as it answers when the ratings `known` (m,) have been folded into it, first the
    users, then the items, which have the attributes `described`. `is_new` (m,): which of them it has not
    learned; items with few of these stay as they are, users with none, and all that `asked` has no rating of.
    """
    posterior = posterior_of(live.model)
    users = np.repeat(posterior.prior_user[None], data.n_users, axis=0)
    users[: len(data.kept)] = live.users[data.kept]
    items = np.repeat(posterior.prior_item[None], data.n_items, axis=0)
    n_items = min(len(live.items), data.n_items)
    items[:n_items] = live.items[:n_items]
    user_row, item_row = known.user_row, known.item_row
    changed = np.ones(data.n_users, dtype=bool)
    # Also those who have taken ratings back.
    changed[: len(data.kept)] = data.user_n[: len(data.kept)] != live.user_n[data.kept]
    if asked is not None:
        changed &= np.bincount(asked.user_row, minlength=data.n_users) > 0
    fold = partial(_folded, threads=threads)
    fold_in, of_users = partial(posterior.fold_in_users, items), described.get("user")
    users = fold(
        *(fold_in, user_row, item_row, known, users),
        n_known=len(data.kept),
        changed=changed,
        described=of_users,
    )
    n_new = np.bincount(item_row[is_new], minlength=data.n_items)
    changed = n_new > _FEW_NEW * np.bincount(item_row, minlength=data.n_items)
    changed[n_items:] = True
    if asked is not None:
        changed &= np.bincount(asked.item_row, minlength=data.n_items) > 0
    fold_in, of_items = partial(posterior.fold_in_items, users), described.get("item")
    items = fold(
        *(fold_in, item_row, user_row, known, items), n_known=n_items, changed=changed, described=of_items
    )
    return Fitted(live.model, users, items)


def _folded(
    fold_in: _FoldIn,
    row: Int32s,
    other_row: Int32s,
    ratings: Ratings,
    current: Float32s,
    *,
    n_known: int,
    changed: Bools,
    described: Columns | None,
    threads: int,
) -> Float32s:
    """Return `current` (b, width) with the rows that are `changed` (b,) as `fold_in` gives them of `ratings`
    by `row` (n,), some of them at a time. The first `n_known` rows were in the fit.
    """
    changed_row = np.flatnonzero(changed)
    order = np.flatnonzero(changed[row])
    order = order[order_by_pair(row[order], order, threads=threads)]
    ends = np.concatenate([[0], np.cumsum(np.bincount(row[order], minlength=len(current))[changed_row])])
    rows, start = current.copy(), 0
    loops = choose_backend(len(order), threads=threads)
    while start < len(changed_row):
        # Loops compute no rows that came after the fit.
        backend = loops if changed_row[start] < n_known else NumpyBackend()
        last = ends[start] + backend.at_once
        # At least one, however many ratings it has.
        stop = max(start + 1, int(np.searchsorted(ends, last, side="right")) - 1)
        if changed_row[start] < n_known:
            stop = min(stop, int(np.searchsorted(changed_row, n_known)))
        some, part_rows = order[ends[start] : ends[stop]], changed_row[start:stop]
        offsets = ends[start : stop + 1] - ends[start]
        context = None if ratings.context is None else ratings.context[some]
        columns = (other_row[some], ratings.value[some], ratings.time[some])
        part = Histories(offsets, *columns, context=context)
        attributes = None if described is None else described.take(part_rows)
        before = current[part_rows]
        rows[part_rows] = fold_in(part, current=before, attributes=attributes, backend=backend)
        start = stop
    return rows
