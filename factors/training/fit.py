"""The fit: variational ALS sweeps to a posterior of every user and item (Lim and Teh, 2007; Bishop, 2006,
chapter 10).

Invariant: what `fit` returns is finite, and its user rows are what `fold_in_users` gives with its item rows.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from factors.errors import FitDiverged, FitRefused
from factors.inference.compiled.backend import choose_backend
from factors.inference.entry_moments import HalfStepInput
from factors.inference.half_step import Iteration, begun
from factors.inference.histories import Compressed, compress_pairs
from factors.inference.side_moments import prior_rows
from factors.model.columns import Columns
from factors.model.context import learn_context_encoding
from factors.model.layout import COUNT
from factors.model.parameters import Parameters, Side, SideName, to_model
from factors.model.quantized_rows import QuantizedTable, item_codec
from factors.model.scale import scale_range
from factors.model.types import ContextKind, Float32s, Float64s, Int64s, Ratings
from factors.posterior.fitted import Fitted
from factors.training.drift import narrowed, widened
from factors.training.initialization import FEW_RATINGS, initial_state
from factors.training.model_selection import LEAST_RATINGS, Selection, observed_scale, select_terms
from factors.training.priors import learn_cold_start, prior_fit
from factors.training.settings import FitSettings
from factors.training.sweep import State
from factors.training.terms import Terms, with_attributes, with_context
from factors.training.training_set import TrainingSet
from factors.training.units import in_rating_units

# With fewer ratings a sweep costs next to nothing, and the fit goes on until it is more settled.
_MANY_TO_SETTLE = 50_000

Progress = Callable[[int, dict[str, float]], None]


def fit(
    ratings: Ratings,
    n_users: int,
    n_items: int,
    *,
    settings: FitSettings,
    rng: np.random.Generator,
    start: Fitted | None = None,
    continuation: int | None = None,
    progress: Progress | None = None,
    attributes: Mapping[SideName, Columns] | None = None,
    context_kinds: Sequence[ContextKind] = (),
    has_read: Callable[[], None] | None = None,
) -> Fitted:
    """Fit `ratings` of `n_users` x `n_items`; users (n_users, w) and items (n_items, w') of the result are
    float32.

    `start`: an earlier fit, perhaps of fewer users and items, to begin from; it is used where its rank is the
    same, and changes how long the fit takes. `continuation`: at most so many sweeps from there, where there
    are many ratings; until the fit has settled where it is None. A scale without a step gets that of the
    ratings, if they keep one. `progress(sweep, metrics)` is called after each sweep; what it raises ends the
    fit. `attributes`: of the rows of either side; held-out ratings decide whether they have effects.
    `context_kinds`: of the fields of the context of `ratings`; of many it is looked at where loops are
    compiled (`backend`). `has_read` is called once `ratings` are not read any more. Raises
    `FitRefused` where the input cannot be fitted and `FitDiverged` where the result is not finite.
    """
    by_user = prepare(ratings, n_users, n_items, settings)
    if has_read is not None:
        has_read()
    if len(by_user.value) == 0:
        return prior_fit(settings, n_users, n_items)
    settings = replace(settings, scale=observed_scale(settings.scale, by_user.value))
    backend = choose_backend(len(by_user.value), threads=settings.threads, block_rows=settings.block_rows)
    encoding = None
    if len(by_user.value) < backend.most_apart:
        encoding = learn_context_encoding(by_user.context, context_kinds)
    if encoding is None:
        by_user = replace(by_user, context=None)
    training = TrainingSet.of(by_user, n_items, backend, attributes, encoding)
    # It has narrower columns of its own.
    del by_user
    for name, columns in training.attributes.items():
        if columns.rows != training.side(name).rows:
            raise FitRefused(f"attributes of {columns.rows} {name}s, not of {training.side(name).rows}")
    goes_on = start is not None and _continues(start, settings, len(training), _offered(training))
    begin = _begin(training, settings, rng, start if goes_on else None)
    if not begin.parameters.reads_times:
        training = training.without_times()
    state, found = begin.on(training)
    del begin
    if goes_on and continuation is not None and len(training) >= _MANY_TO_SETTLE:
        settings = replace(settings, sweeps=min(settings.sweeps, continuation))
    tolerance = settings.tolerance * (0.2 if len(training) < _MANY_TO_SETTLE else 1.0)
    sweeps, change = 0, 0.0
    for sweeps in range(1, settings.sweeps + 1):
        change = state.sweep()
        if progress is not None:
            progress(sweeps, {"change": change, "noise": state.parameters.noise})
        if change < tolerance:
            break
    # `finish` lets the ratings by item go.
    del training
    return finish(state, found | {"sweeps": float(sweeps), "change": change})


def _begin(
    training: TrainingSet, settings: FitSettings, rng: np.random.Generator, start: Fitted | None
) -> Selection:
    """Return how to sweep: from `start`, or with terms that are chosen, or from a plain state for few
    ratings.
    """
    n = len(training)
    offered = _offered(training)
    if start is not None:
        known = narrowed(start.posterior.parameters)
        # The priors of rows that come after a fit are learned when it ends: to the sweeps every row is known.
        # Columns of the same number may be others: their effects are learned anew in each sweep.
        users, items = (
            with_attributes(
                replace(side, cold_start=None),
                None if side.attribute_effects is None else training.attributes.get(name),
            )
            for name, side in _sides(known)
        )
        encoding = None if known.context is None else training.context
        known = replace(known, users=users, items=items, context=with_context(known, encoding))

        def goes_on(training: TrainingSet) -> tuple[State, dict[str, float]]:
            item_rows = start.posterior.item_codec.decode(start.items).astype(np.float64)
            return State.of_rows(training, known, start.users.astype(np.float64), item_rows), {}

        return Selection(known, goes_on)
    decides = settings.link != "gaussian" or settings.implicit_effects or settings.session_effects
    if n < LEAST_RATINGS or not decides:
        state = initial_state(training, settings, rng)
        state = state.branch(Terms("ordinal")) if settings.link == "ordinal" else state
        return Selection(state.parameters, lambda _: (state, {}))
    chosen = select_terms(training, settings, rng)

    def decided(training: TrainingSet) -> tuple[State, dict[str, float]]:
        state, metrics = chosen.on(training)
        state.parameters = replace(
            state.parameters, decided=float(n), decided_columns=offered[:2], decided_context=offered[2]
        )
        return state, metrics

    return replace(chosen, on=decided)


def _sides(parameters: Parameters) -> tuple[tuple[SideName, Side], tuple[SideName, Side]]:
    return ("user", parameters.users), ("item", parameters.items)


def _offered(training: TrainingSet) -> tuple[int, int, int]:
    """Return how many columns the attributes of users and of items have, and the contexts of ratings."""
    users, items, context = training.attributes.get("user"), training.attributes.get("item"), training.context
    return users.width if users else 0, items.width if items else 0, context.width if context else 0


def _continues(start: Fitted, settings: FitSettings, n_ratings: int, offered: tuple[int, int, int]) -> bool:
    """Return whether a fit may go on from `start`: same scale, rank and link, and its terms chosen from about
    as many ratings as there are now, and with or without attributes and contexts as now.
    """
    model, few, known = start.model, n_ratings < FEW_RATINGS, start.posterior.parameters
    # When there are so many times the ratings, or fewer by that, terms are chosen again: of few ratings that
    # takes a second, but with contexts many.
    again = 1.1 if few and not known.decided_context else 1.2
    return (
        model.scale == settings.scale
        and settings.rank in ("auto", model.rank)
        and settings.link in ("auto", model.link)
        and [columns > 0 for columns in offered]
        == [columns > 0 for columns in (*known.decided_columns, known.decided_context)]
        and max(LEAST_RATINGS, known.decided / again) <= n_ratings < again * known.decided
    )


def prepare(ratings: Ratings, n_users: int, n_items: int, settings: FitSettings) -> Compressed:
    """Return the ratings by user, each pair once. Raises `FitRefused` for what cannot be fitted."""
    user, item = np.asarray(ratings.user_row), np.asarray(ratings.item_row)
    value, time = np.asarray(ratings.value, dtype=np.float64), np.asarray(ratings.time, dtype=np.float64)
    if n_users < 0 or n_items < 0:
        raise FitRefused("numbers of users and items cannot be below 0")
    if not (user.ndim == 1 and user.shape == item.shape == value.shape == time.shape):
        raise FitRefused("user rows, item rows, values and times must be vectors of one length")
    for name, rows, size in (("user", user, n_users), ("item", item, n_items)):
        if len(rows) and (rows.dtype.kind not in "iu" or rows.min() < 0 or rows.max() >= size):
            raise FitRefused(f"a {name} row is outside the table of {size} rows")
    context = ratings.context
    if context is not None and (context.ndim != 2 or len(context) != len(value)):
        raise FitRefused("the context of ratings must have a row for each of them")
    # A NaN rating takes a pair back, here as in histories.
    known = value[~np.isnan(value)]
    # Bounds such as 0.1 + 0.2 are no exact floats.
    slack = 1e-9 * scale_range(settings.scale)
    if len(known) and (known.min() < settings.scale.low - slack or known.max() > settings.scale.high + slack):
        raise FitRefused(
            f"ratings from {known.min():g} to {known.max():g} are outside the scale "
            f"from {settings.scale.low:g} to {settings.scale.high:g}"
        )
    user, item = user.astype(np.int32, copy=False), item.astype(np.int32, copy=False)
    return compress_pairs(user, item, value, time, n_users, context=context, wide=False)


def finish(state: State, metrics: dict[str, float]) -> Fitted:
    """Return the tables as they are published: items as they are stored, users folded in with exactly these.
    The state has no rows any more. Raises `FitDiverged`.
    """
    parameters, user_rows, item_rows = in_rating_units(state.parameters, state.user_rows, state.item_rows)
    # The last half-step has sites of its own, and reads no ratings by item.
    state.end()
    training = state.training
    parameters = learn_cold_start(
        widened(parameters), user_rows, item_rows, training.by_user, training.attributes
    )
    model = to_model(parameters)
    codec = item_codec(parameters)
    items = codec.encode(item_rows)
    # The sweeps know no cold start: rows without ratings get the prior of new ones.
    unrated = np.flatnonzero(item_rows[:, COUNT] == 0)
    items[unrated] = codec.encode(_priors(parameters.items, unrated, training.attributes.get("item")))
    if not (codec.all_finite(items) and all(np.isfinite(array).all() for array in model.parameters.values())):
        raise FitDiverged("the fit gave item rows or priors that are not finite")
    effect = parameters.users.layout.implicit_effect
    effects = user_rows[:, effect].copy()
    del item_rows
    # Users are folded in with items as the service reads them, so that a later fold-in gives the same row.
    table = QuantizedTable(items, codec)
    by_user = training.by_user.thinned()
    of_users = training.attributes.get("user")
    inputs = HalfStepInput.of(parameters, "user", table, by_user, attributes=of_users)
    # Where they begin saves steps, and does not tell where they end.
    to_the_end = Iteration(begin=begun(inputs, user_rows), spent=True)
    del user_rows
    step = training.backend.half_step(inputs, to_the_end)
    users: Float32s = step.rows.astype(np.float32)
    users[:, effect] = effects
    unrated = np.flatnonzero(users[:, COUNT] == 0)
    users[unrated] = _priors(parameters.users, unrated, of_users)
    if not np.isfinite(users).all():
        raise FitDiverged("the fit gave user rows that are not finite")
    return Fitted(model, users, items, metrics)


def _priors(side: Side, rows: Int64s, attributes: Columns | None) -> Float64s:
    """Return the rows (m, width) of those at `rows` (m,), which have no ratings."""
    if attributes is None:
        return np.repeat(prior_rows(side, 1), len(rows), axis=0)
    return prior_rows(side, len(rows), attributes.take(rows))
