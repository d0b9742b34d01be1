"""Fits a ranking head: chooses, then learns from everything. Invariant: what is published is finite."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import scipy.sparse as sp

from factors.errors import FitRefused
from factors.inference.backend import MANY_RATINGS
from factors.inference.histories import Compressed, compress_pairs
from factors.model.columns import Columns
from factors.model.types import Choices, Float32s, Int64s, Ratings, UInt8s
from factors.ranking.half_steps import Events, solve_round
from factors.ranking.head import RankingHead
from factors.ranking.parameters import Counts, RankingChoices, choices_of
from factors.ranking.selection.held_out import Typed
from factors.ranking.selection.search import LEAST_EVENTS, choose
from factors.ranking.selection.succession import hold_out_newest, may_follow
from factors.ranking.side_attributes import factors_of, learn_relevance
from factors.ranking.training import RankingFit, events_of_items, events_of_users, fit_with
from factors.ranking.type_weights import TypeTable, TypeWeight, one_of_pairs, resolved

# From an earlier head so many sweeps take in what is new, and fewer what is a small part of all: of the last
# hundredth of the events of two sets the first sweep leaves nothing that lists show.
_SWEEPS, _SWEEPS_OF_FEW, _FEW_NEW, _FEWEST_NEW = 4, 2, 0.05, 0.01
# From the factors of a library, which knows no activities and one ridge alone.
_SWEEPS_OF_LIBRARY = 2
# With so many times the events, of all or of a type, what was chosen is chosen again. That takes
# longer than to choose the terms of the ratings' fit again, which is done sooner.
_AGAIN = 1.5

Factorize = Callable[[sp.csr_matrix, int, float], Float32s]
"""What a library does: item factors (n_items, r) from confidences (n_users, n_items), which are negative
where the user did not want the item, the rank r and the ridge.
"""


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
    not learned; its choices stay where lists of others find the newest of these worse, or are much unlike and
    find them no better. BLAS threads are the caller's to pin. Raises `FitRefused` where there is nothing to
    learn from, and `FitDiverged`.
    """
    by_user, typed = _events(ratings, n_users, start, choices, types, threads=threads)
    codes = None if typed is None else typed.codes
    events = len(by_user.other)
    if events == 0 or not (typed is None or typed.wants_any(by_user)):
        raise FitRefused("no rating to learn a ranking from, nor anything else that was wanted")
    chosen, anew = typed is None or not typed.grown(by_user, _AGAIN), False
    begin: Float32s | None
    if start is not None and chosen and LEAST_EVENTS <= events < _AGAIN * start.parameters.decided:
        new = 0 if unlearned is None else len(unlearned)
        changed = max(new, abs(events - start.parameters.events)) / events
        sweeps = _SWEEPS_OF_FEW - (changed <= _FEWEST_NEW) if changed <= _FEW_NEW else _SWEEPS
        settings = replace(choices_of(start.parameters), sweeps=sweeps)
        settings = replace(settings, types=() if typed is None else typed.types)
        begin, figures = start.items, dict[str, float]()
    else:
        typed = None if typed is None else typed.counted(by_user)
        anew = factorize is None
        search = choose(by_user, n_items, rng, threads, types=typed, rated=anew)
        settings, figures, begin = search.choices, search.figures, search.begin
    if factorize is not None:
        begin = first_items(factorize, by_user, n_items, settings, codes)
        settings = replace(settings, sweeps=_SWEEPS_OF_LIBRARY, gamma=0.0)
    how: dict[str, Any] = {"rng": rng, "threads": threads, "codes": codes}
    found = fit_with(by_user, n_items, settings, begin=begin, **how)
    if anew and start is not None and start.parameters.decided and unlearned is not None:
        newest = hold_out_newest(by_user, unlearned, start, n_items, rng=rng, typed=typed)
        # From nothing: what the search found has learned these.
        usual = replace(settings, sweeps=RankingChoices().sweeps)
        tried = partial(fit_with, newest.known, n_items, usual, **how)
        if not may_follow(found.head, start, newest, lambda: tried().head):
            kept = replace(choices_of(start.parameters), sweeps=_SWEEPS, decided=settings.decided)
            settings = replace(kept, types=() if typed is None else typed.types)
            found = fit_with(by_user, n_items, settings, begin=start.items, **how)
            figures = {"ranking_kept": 1.0}
    found = replace(found, metrics=figures)
    if attributes is not None:
        users_of, _ = events_of_users(by_user, settings, codes)
        found = _described(found, attributes, *events_of_items(users_of, n_items), threads)
    told = {
        f"ranking_{name}": float(getattr(settings, name))
        for name in ("negatives", "ridge", "sparse_weight", "recency_boost", "gamma")
    }
    told |= {f"ranking_weight_{each.code}": float(each.weight or 0.0) for each in settings.types}
    return replace(found, metrics={**found.metrics, **told})


def _events(
    ratings: Ratings,
    n_users: int,
    start: RankingHead | None,
    choices: Choices | None,
    types: Sequence[TypeWeight],
    *,
    threads: int,
) -> tuple[Compressed, Typed | None]:
    """Return the events by user, and of events of several types what they count."""
    if choices is None:
        columns = (ratings.user_row, ratings.item_row, ratings.value, ratings.time)
        return compress_pairs(*columns, n_users, wide=False, threads=threads), None
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
    solved = solve_round(start, events, found.users, prior, threads, compiled=compiled)
    items = np.asarray(solved, np.float32)
    items = np.where(chosen[:, None], items, expected)
    # Nothing is known beforehand of an item without attributes.
    items = np.where(attributes.described[:, None], items, head.items)
    described = np.flatnonzero(~chosen & attributes.described)
    return replace(found, head=replace(head, items=items), relevance=relevance, described=described)


def first_items(
    factorize: Factorize, by_user: Compressed, n_items: int, choices: RankingChoices, codes: UInt8s | None
) -> Float32s:
    """Return the item factors (n_items, r) that `factorize` gives for the events `by_user`, as a head with
    these `choices` has them, to begin a fit with. `codes`: as in `fit_with`.

    Divided by the weight `a0` of a pair, the squares of the head (`factors/ranking/half_steps.py`) have 1 for
    each pair and `w / a0` more for an event of weight `w`. Hu, Koren and Volinsky (2008) have the confidence
    `c = 1 + w / a0` there. With one ridge for users and one for items, `|x|` and `|y|` grow and shrink
    against each other, and the root of the product of the two ridges alone decides; activities and the ridge
    for each event are the head's own.
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
