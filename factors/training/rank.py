"""Latent dimensions that a fit lacks, read off what it leaves of its ratings.

Invariant: to look costs less than a sweep, whatever the rank, and a state that grows predicts at first what
it did before, but for the new dimensions.

The slope of the log likelihood of a rating in its score is what the fit leaves of it. If all is said these
slopes are noise, and turning the signs of some of them at random changes nothing; a dimension that is missing
is a singular vector of their matrix that stands out against the same matrix with random signs (parallel
analysis, Horn, 1965; with signs, Hong, Sheng and Dobriban, 2020). Rows and columns are scaled by the square
roots of their information, each raised by the mean of all, so that rows of few ratings do not stand out by
themselves (Chaudhuri, Chung and Tsiatas, 2012). New dimensions begin as large as they are: from a prior that
is too narrow a fit needs dozens of sweeps, and a trial gives them up before.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from factors.inference.entry_moments import Posterior
from factors.inference.half_step import HalfStep
from factors.inference.histories import Compressed
from factors.model.layout import Layout
from factors.model.links import link_of
from factors.model.parameters import Side
from factors.model.types import Float32s, Float64s, Int64s
from factors.training.settings import WORTH, FitSettings
from factors.training.sweep import State
from factors.training.terms import relayout, spread

# At most so many dimensions are found at a time; a few more vectors make the last of them exact.
_AT_ONCE, _SPARE = 16, 4
# Power iterations: singular values of noise lie close together, and none of them has to be told from another.
_ITERATIONS = 6
# Records of 9 KB a user: further dimensions are for those who ask for them.
_LARGEST_RANK = 64
# Sweeps in which a state settles.
SETTLE = 12
# After so many sweeps new dimensions must have brought what they are worth. Most of it comes with the first,
# and with more of them a state that still lacks dimensions fits its noise.
_TRIAL = 2
# Ratings whose standard error of a mean is under a hundredth of a nat.
_LEFT_OUT = 20_000
# Ratings that are looked at together: a vector of numbers of them is 8 MB.
_BLOCK = 1 << 20
# The largest singular value of noise varies by so much at a thousand rows, and less at more.
_BEYOND_CHANCE = 1.01


@dataclass(frozen=True, slots=True)
class Directions:
    """Dimensions that are missing: `loadings` (m, k) of the items, and the prior `variance` (k,) of users and
    of items in each; `information` (m,) that the ratings of an item have of its score.
    """

    loadings: Float64s
    variance: Float64s
    information: Float64s


def with_rank(
    state: State, scores: Callable[[State], Float64s], settings: FitSettings, rng: np.random.Generator
) -> State:
    """Return a state of the rank that `settings` ask for, or with as many more dimensions as its ratings show
    and that are worth it by their `scores`, nats of some ratings (n,), each predicted without that rating.
    """
    if settings.rank == state.parameters.users.layout.rank:
        return state
    # What is still on its way into the dimensions that are there would be taken for a further one.
    state.run(min(SETTLE // 2, settings.sweeps), until=settings.tolerance)
    if settings.rank == "auto":
        return _best_rank(state, scores, settings, rng)
    while (extra := settings.rank - state.parameters.users.layout.rank) > 0:
        found = missing_directions(state, min(_AT_ONCE, extra), rng)
        state = grown(state, found or _any_directions(state, extra, rng))
        state.run(min(_TRIAL, settings.sweeps))
    return state


def _any_directions(state: State, extra: int, rng: np.random.Generator) -> Directions:
    """Return so many random dimensions, as large as the mean of those of `state`."""
    information = state.training.by_item.counts / state.parameters.noise
    users, items = (
        float(np.diag(side.covariance)[:-1].mean())
        for side in (state.parameters.users, state.parameters.items)
    )
    variance = np.full(extra, math.sqrt(users * items))
    loadings = rng.standard_normal((len(information), extra)) * np.sqrt(variance)
    return Directions(loadings, variance, information)


def _best_rank(
    state: State, scores: Callable[[State], Float64s], settings: FitSettings, rng: np.random.Generator
) -> State:
    while (rank := state.parameters.users.layout.rank) < _LARGEST_RANK:
        found = missing_directions(state, min(_AT_ONCE, _LARGEST_RANK - rank), rng)
        if found is None:
            break
        known = scores(state)  # before the larger one moves their sites
        larger = grown(state, found)
        gain = scores(larger.run(min(_TRIAL, settings.sweeps))) - known
        if not gain.mean() > max(WORTH, gain.std() / math.sqrt(len(gain))):
            break
        state = larger
    return state


def left_out_scores(state: State) -> Float64s:
    """Return nats of some ratings of a swept state, each as if it had not seen that one."""
    entries, mean, variance = state.leave_one_out(_LEFT_OUT)
    value = state.training.by_user.value[entries]
    return link_of(state.parameters).log_likelihoods(value, mean, variance)


def missing_directions(state: State, most: int, rng: np.random.Generator) -> Directions | None:
    """Return at most `most` dimensions that a swept state lacks; None where the ratings show none."""
    by_user, by_item = state.training.by_user, state.training.by_item
    most = min(most, by_user.rows - _SPARE, by_item.rows - _SPARE)
    slope, curvature = state.slopes()
    if most < 1 or len(slope) == 0:
        return None
    of_users, of_items = np.zeros(by_user.rows), np.zeros(by_item.rows)
    for part, row, other in _blocks(by_user):
        of_users += np.bincount(row, curvature[part], by_user.rows)
        of_items += np.bincount(other, curvature[part], by_item.rows)
    del curvature
    total = float(of_items.sum())
    user_raised, item_raised = (each + total / len(each) for each in (of_users, of_items))
    user_unit, item_unit, left = np.sqrt(user_raised), np.sqrt(item_raised), slope
    for part, row, other in _blocks(by_user):
        left[part] /= user_unit[row] * item_unit[other]
    signs = rng.integers(0, 2, len(left), dtype=np.int8) * np.int8(2) - np.int8(1)
    # In place: twice the signs leave what was there.
    left *= signs
    chance, _ = _singular(state, left, most, rng)
    left *= signs
    values, vectors = _singular(state, left, most, rng)
    found = int(np.count_nonzero(values > _BEYOND_CHANCE * chance[0]))
    if found == 0:
        return None
    signal = _without_noise(values[:found], float(chance[0]), by_user.rows / by_item.rows)
    # A unit of such a dimension, in each row of either side, is a singular vector of this length.
    user_length, item_length = (
        math.sqrt(float(np.sum(each * each / raised)))
        for each, raised in ((of_users, user_raised), (of_items, item_raised))
    )
    variance = signal * (total / (user_length * item_length))
    scale = np.sqrt(item_raised) * item_length / np.maximum(of_items, 1e-300)
    return Directions(vectors[:, :found] * scale[:, None] * np.sqrt(variance), variance, of_items)


def _blocks(by_user: Compressed) -> Iterator[tuple[slice, Int64s, Int64s]]:
    """Yield parts of the entries, and the rows of both sides of each."""
    n = len(by_user.other)
    for start in range(0, n, _BLOCK):
        part = slice(start, start + _BLOCK)
        entries = np.arange(start, min(start + _BLOCK, n))
        yield part, np.searchsorted(by_user.indptr, entries, side="right") - 1, by_user.other[part]


def _without_noise(values: Float64s, chance: float, ratio: float) -> Float64s:
    """Return the singular values that a matrix had before noise was added whose largest one is `chance`;
    `ratio` of its rows to its columns (Benaych-Georges and Nadakuditi, 2012, section 3.1).
    """
    root = math.sqrt(ratio)
    rows, columns = (chance * root / (1.0 + root)) ** 2, (chance / (1.0 + root)) ** 2
    half = np.maximum(0.5 * (values * values - rows - columns), math.sqrt(rows * columns))
    signal: Float64s = np.sqrt(half + np.sqrt(np.maximum(half * half - rows * columns, 0.0)))
    return signal


def _singular(
    state: State, entries: Float32s, most: int, rng: np.random.Generator
) -> tuple[Float64s, Float64s]:
    """Return the `most` largest singular values, descending, of the matrix that has these `entries` of
    `by_user`, and their vectors (items, most).
    """
    by_user, by_item = state.training.by_user, state.training.by_item
    product = state.training.backend.product
    # By item as well: a product with the transposed matrix would jump between its rows.
    turned = entries[by_item.source]
    vectors = rng.standard_normal((by_item.rows, most + _SPARE), dtype=np.float32)
    for _ in range(_ITERATIONS):
        users = np.linalg.qr(product(by_user, entries, vectors))[0]
        vectors = np.linalg.qr(product(by_item, turned, users))[0]
    _, values, turn = np.linalg.svd(product(by_user, entries, vectors), full_matrices=False)
    return values[:most].astype(np.float64), (vectors @ turn.T)[:, :most].astype(np.float64)


def grown(state: State, directions: Directions) -> State:
    """Return `state` with these dimensions after its own, of which users know nothing yet. Both have the same
    sites, which move with the one that sweeps; a sweep of the other goes on from where they are then.
    """
    known, extra = state.parameters, directions.variance
    users, items = _grown_side(known.users, extra), _grown_side(known.items, extra)
    context = known.context
    if context is not None:
        context = replace(context, effects=spread(context.effects, users.layout))
    parameters = replace(known, users=users, items=items, context=context)
    user_rows = relayout(known.users, users, state.user_rows)
    item_rows = relayout(known.items, items, state.item_rows)
    # What ratings say of an item, were its users spread as the prior has it: the rest is left unknown.
    told = directions.information[:, None] * extra * extra
    told /= 1.0 + told
    layout, first = items.layout, known.items.layout.rank
    new = np.arange(first, layout.rank)
    item_rows[:, layout.mean][:, new] = directions.loadings * told
    item_rows[:, layout.covariance][:, new * (new + 1) // 2 + new] = extra * (1.0 - told)
    larger = State(state.training, parameters, user_rows, item_rows)
    for name, step in state.steps.items():
        # Posteriors of rows that move say more than the rows do: such a side begins from its prior.
        if not known.side(name)[0].layout.moving:
            rows = user_rows if name == "user" else item_rows
            larger.steps[name] = _grown_step(step, rows, parameters.side(name)[0].layout)
    return larger


def _grown_step(step: HalfStep, rows: Float64s, layout: Layout) -> HalfStep:
    """Return `step` of a side that has these `rows` of this `layout` now, to iterate from."""
    effects = step.posterior.effects
    if len(effects.mean):
        effects = replace(effects, covariance=spread(effects.covariance, layout))
    return HalfStep(rows, Posterior(rows[:, layout.mean], rows[:, layout.covariance], effects), step.sites)


def _grown_side(side: Side, extra: Float64s) -> Side:
    layout = replace(side.layout, rank=side.layout.rank + len(extra))
    # Where `[latent, bias]` stand once the new dimensions are between.
    new = np.arange(side.layout.rank, layout.rank)
    kept = np.append(np.arange(side.layout.rank), layout.rank)
    covariance = np.zeros((layout.dim, layout.dim))
    covariance[np.ix_(kept, kept)] = side.covariance
    covariance[new, new] = extra
    drift, effects = side.drift, side.attribute_effects
    if drift is not None:
        # New dimensions move as fast as the others do, in proportion.
        ratio = float(np.trace(drift.covariance) / np.trace(side.covariance))
        moving = np.zeros_like(covariance)
        moving[np.ix_(kept, kept)] = drift.covariance
        moving[new, new] = ratio * extra
        drift = replace(drift, covariance=moving, precision=_inverse(moving))
    return replace(
        side,
        layout=layout,
        mean=spread(side.mean[None], layout)[0],
        covariance=covariance,
        precision=_inverse(covariance),
        drift=drift,
        attribute_effects=None if effects is None else spread(effects, layout),
    )


def _inverse(matrix: Float64s) -> Float64s:
    return np.asarray(np.linalg.inv(matrix), dtype=np.float64)
