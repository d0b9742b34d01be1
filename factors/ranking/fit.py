"""Fits a ranking head: chooses, then learns from everything. Invariant: what is published is finite."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from factors.errors import FitRefused
from factors.inference.backend import MANY_RATINGS
from factors.inference.histories import Compressed, compress_pairs
from factors.model.columns import Columns
from factors.model.types import Choices, Float32s, Int64s, Ratings
from factors.ranking.choices import RankingChoices, choices_of
from factors.ranking.confidences import Factorize, first_items
from factors.ranking.half_steps import Events, solve_round
from factors.ranking.head import RankingHead
from factors.ranking.parameters import Counts
from factors.ranking.selection.held_out import Typed
from factors.ranking.selection.search import LEAST_EVENTS, choose
from factors.ranking.selection.succession import carried_on, hold_out_newest, may_follow
from factors.ranking.side_attributes import factors_of, learn_relevance
from factors.ranking.training import RankingFit, events_of_items, events_of_users, fit_with
from factors.ranking.type_weights import TypeTable, TypeWeight, one_of_pairs, resolved

# From earlier factors so many sweeps take in what is new, and fewer what is a small part of all: of the last
# hundredth of the events of two sets the first sweep leaves nothing that lists show.
_SWEEPS, _SWEEPS_OF_FEW, _FEW_NEW = 4, 2, 0.05
# From the factors of a library, which knows no activities and one ridge alone.
_SWEEPS_OF_LIBRARY = 2
# With so many times the events, of all or of a type, what was chosen is chosen again, as the terms of the
# ratings' fit are.
_AGAIN = 1.5


def fit_ranking(
    ratings: Ratings,
    n_users: int,
    n_items: int,
    *,
    rng: np.random.Generator,
    threads: int = 1,
    start: RankingHead | None = None,
    choices: Choices | None = None,
    types: Sequence[TypeWeight] = (),
    attributes: Columns | None = None,
    factorize: Factorize | None = None,
    unlearned: Int64s | None = None,
) -> RankingFit:
    """Return a head fitted to who rated what, with settings chosen on a part of it that is held out.

    `start`: an earlier head, perhaps of fewer items, to go on from while the events are about as many as it
    was chosen by. `choices`: where there are events of other types, these and the ratings, which count as
    `types` say. `attributes`: of the items; those without events have the factors that these say.
    `factorize`: the sweeps of a library, which end in a few of our own; expected ratings then play no part
    in lists. `unlearned`: positions of the ratings, or of the `choices` where there are any, that `start` has
    not learned. A head whose lists find the newest of these worse than those of `start`, or are much unlike
    and find them no better, is not returned: one with the choices of `start` is, and if that is no better,
    `start` itself, with the items that it had not. BLAS threads are the caller's to pin. Raises `FitRefused`
    where there is nothing to learn from, and `FitDiverged`.
    """
    by_user, typed = _events(ratings, n_users, start, choices, types)
    codes = None if typed is None else typed.codes
    events = len(by_user.other)
    if events == 0 or not (typed is None or typed.wants_any(by_user)):
        raise FitRefused("no rating to learn a ranking from, nor anything else that was wanted")
    stand = typed is None or not typed.grown(by_user, _AGAIN)
    decided = 0.0 if start is None else start.parameters.decided
    plans, figures = list[_Plan](), dict[str, float]()
    if not (stand and LEAST_EVENTS <= events < _AGAIN * decided):
        typed = None if typed is None else typed.counted(by_user)
        anew, figures = choose(by_user, n_items, rng, threads, types=typed, rated=factorize is None)
        plans, decided = [_Plan(anew)], anew.decided
    newest = None
    if start is not None and start.parameters.decided:
        before = replace(choices_of(start.parameters), types=() if typed is None else typed.types)
        sweeps = _sweeps(abs(events - start.parameters.events), events)
        plans.append(_Plan(replace(before, sweeps=sweeps, decided=decided), start.items))
        if unlearned is not None:
            newest = hold_out_newest(by_user, unlearned, start, n_items, rng=rng, typed=typed)
    if factorize is not None:
        plans = [each.of_library() for each in plans]

    def fit_head(plan: _Plan, data: Compressed) -> RankingFit:
        begin = plan.begin
        if factorize is not None and begin is None:
            begin = first_items(factorize, data, n_items, plan.choices, codes)
        return fit_with(data, n_items, plan.choices, begin=begin, rng=rng, threads=threads, codes=codes)

    plan, known = plans[0], 0
    if start is None or newest is None:
        found = fit_head(plan, by_user)
    else:
        for plan in plans:
            tried = fit_head(plan, newest.known).head
            if may_follow(tried, start, newest):
                sweeps = _sweeps(events - len(newest.known.other), events)
                found = fit_head(_Plan(replace(plan.choices, sweeps=sweeps), tried.items), by_user)
                break
            figures = {"ranking_choices_kept": 1.0}
        else:
            figures, known = {"ranking_head_kept": 1.0}, min(len(start.items), n_items)
            found = carried_on(start, by_user, n_items, plan.choices, codes=codes, threads=threads)
    settings = plan.choices
    if attributes is not None:
        users_of, _ = events_of_users(by_user, settings, codes)
        found = _described(found, attributes, *events_of_items(users_of, n_items), threads)
        if start is not None:
            # Of a head that is kept nothing is learned again.
            found.head.items[:known] = start.items[:known]
    told = {
        f"ranking_{name}": float(getattr(settings, name))
        for name in ("negatives", "ridge", "sparse_weight", "recency_boost", "gamma")
    }
    told |= {f"ranking_weight_{each.code}": float(each.weight or 0.0) for each in settings.types}
    return replace(found, metrics={**figures, **told})


@dataclass(frozen=True, slots=True)
class _Plan:
    """The `choices` of a fit, and the item factors (m, r) that it begins from, None for nothing."""

    choices: RankingChoices
    begin: Float32s | None = None

    def of_library(self) -> "_Plan":
        """Return the plan whose sweeps are a library's, which knows no expected ratings, and a few more."""
        return _Plan(replace(self.choices, sweeps=_SWEEPS_OF_LIBRARY, gamma=0.0))


def _sweeps(new: float, events: int) -> int:
    """Return how many sweeps take in so many `new` ones among the `events`."""
    return _SWEEPS_OF_FEW if new <= _FEW_NEW * events else _SWEEPS


def _events(
    ratings: Ratings,
    n_users: int,
    start: RankingHead | None,
    choices: Choices | None,
    types: Sequence[TypeWeight],
) -> tuple[Compressed, Typed | None]:
    """Return the events by user, and of events of several types what they count."""
    if choices is None:
        columns = (ratings.user_row, ratings.item_row, ratings.value, ratings.time)
        return compress_pairs(*columns, n_users, wide=False), None
    weights, open_codes = resolved(types, () if start is None else start.parameters.types)
    high = float(ratings.value.max()) if len(ratings.value) else 1.0
    by_user = one_of_pairs(choices, n_users, TypeTable.of(weights), high).narrow()
    return by_user, Typed(choices.type_code, weights, open_codes)


def _described(
    found: RankingFit, attributes: Columns, events: Events, counts: Counts, threads: int
) -> RankingFit:
    """Return `found` with what attributes say of the items, whose `events` and `counts` (n_items,) these are:
    as in folding in, all that is known of those that were not chosen, and less the more they were.
    """
    # What was shown alone, or disliked, has factors of 0: attributes say more.
    head, chosen = found.head, np.asarray(counts) > 0
    # What all users add to the precision of an item is, but for a factor, what relevance is made of.
    relevance = learn_relevance(attributes, head.items, chosen, head.parameters.item_gram)
    if relevance is None:
        return found
    expected = factors_of(relevance, attributes)
    start = head.parameters.unknown(counts)[:, None].astype(np.float32) * expected
    prior = head.parameters.prior("item", counts)
    compiled = len(events.other) >= MANY_RATINGS
    found_items = solve_round(start, events, found.users, prior, threads, compiled=compiled)
    items = np.asarray(found_items, np.float32)
    items = np.where(chosen[:, None], items, expected)
    # Nothing is known beforehand of an item without attributes.
    items = np.where(attributes.described[:, None], items, head.items)
    described = np.flatnonzero(~chosen & attributes.described)
    return replace(found, head=replace(head, items=items), relevance=relevance, described=described)
