"""The fit: variational ALS sweeps to a posterior of every user and item (Lim and Teh, 2007; Bishop, 2006,
chapter 10).

Invariant: what `fit` returns is finite, and its user rows are what `fold_in_users` gives with its item rows.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Required, TypedDict, Unpack

import numpy as np

from factors.errors import FitRefused
from factors.inference.compiled.backend import choose_backend
from factors.inference.histories import NO_HISTORIES, Compressed, compress_pairs
from factors.inference.session_effects import move_back
from factors.model.columns import Columns
from factors.model.context import learn_context_encoding
from factors.model.parameters import Parameters, Side, SideName
from factors.model.scale import scale_range
from factors.model.types import ContextKind, Int64s, Ratings
from factors.posterior.fitted import Fitted
from factors.training.drift import narrowed
from factors.training.initialization import FEW_RATINGS, initial_state
from factors.training.model_selection import LEAST_RATINGS, Selection, observed_scale, select_terms
from factors.training.priors import prior_fit
from factors.training.settings import FitSettings
from factors.training.sweep import State
from factors.training.tables import finish, served
from factors.training.terms import Terms, with_attributes, with_context
from factors.training.training_set import TrainingSet

# With fewer ratings a sweep costs next to nothing, and the fit goes on until it is more settled.
_MANY_TO_SETTLE = 50_000

Progress = Callable[[int, dict[str, float]], None]

# Sweeps after which a fit that held out more than a hundredth has learned these too, from where it was; of
# fewer one is enough. Further ones change the error of ratings that were not seen by 0.005 % (1 M made ones).
_SWEEPS_OF_HELD_OUT = 3
_FEW_HELD_OUT = 0.01
_NONE_HELD_OUT: Int64s = np.zeros(0, dtype=np.int64)


class FitOptions(TypedDict, total=False):
    """How to fit.

    `start`: an earlier fit, perhaps of fewer users and items, to begin from; it is used where its rank is the
    same, and changes how long the fit takes. `continuation`: at most so many sweeps from there, where there
    are many ratings; until the fit has settled where it is None. A scale without a step gets that of the
    ratings, if they keep one. `progress(sweep, metrics)` is called after each sweep; what it raises ends the
    fit. `attributes`: of the rows of either side; held-out ratings decide whether they have effects.
    `context_kinds`: of the fields of the context of `ratings`; of many it is looked at where loops are
    compiled (`backend`). `has_read` is called once `ratings` are not read any more.
    """

    settings: Required[FitSettings]
    rng: Required[np.random.Generator]
    start: Fitted | None
    continuation: int | None
    progress: Progress | None
    attributes: Mapping[SideName, Columns] | None
    context_kinds: Sequence[ContextKind]
    has_read: Callable[[], None] | None


def fit(ratings: Ratings, n_users: int, n_items: int, **options: Unpack[FitOptions]) -> Fitted:
    """Fit `ratings` of `n_users` x `n_items`; users (n_users, w) and items (n_items, w') of the result are
    float32. Raises `FitRefused` where the input cannot be fitted and `FitDiverged` where the result is not
    finite.
    """
    return TrialFit(ratings, n_users, n_items, **options).complete()


class TrialFit:
    """A fit of `ratings` but those at the positions `held_out`, which goes on with these from where it is:
    all are ordered once. Raises as `fit` does.
    """

    def __init__(
        self,
        ratings: Ratings,
        n_users: int,
        n_items: int,
        held_out: Int64s = _NONE_HELD_OUT,
        **options: Unpack[FitOptions],
    ) -> None:
        self._shape, self._options, self._settings = (n_users, n_items), options, options["settings"]
        self._state: State | None = None
        self._metrics, self._short = dict[str, float](), False
        self._held_out = _held_out(ratings, held_out, n_users)
        # Each step has what it is given to itself: nothing here keeps what a narrower copy stands for.
        self._begin(self._training(self._by_user(ratings, held_out)))

    def fitted(self) -> Fitted:
        """Return the fit without what it holds out. Of the users only those of whom it does are as they are
        served.
        """
        if self._state is None:
            return prior_fit(self._settings, *self._shape)
        return served(self._state, self._metrics, np.flatnonzero(self._held_out.counts))

    def complete(self) -> Fitted:
        """Return the fit of all ratings. Called once: nothing is left of this fit then."""
        held_out, self._held_out = self._held_out, NO_HISTORIES
        if len(held_out.value):
            self._take_in(held_out)
        state, self._state = self._state, None
        return prior_fit(self._settings, *self._shape) if state is None else finish(state, self._metrics)

    def _take_in(self, held_out: Compressed) -> None:
        if self._state is None:
            self._begin(self._training(held_out))
            return
        state = self._state = self._state.with_ratings(held_out)
        n = len(state.training)
        if not state.parameters.decided and n >= LEAST_RATINGS and _decides(self._settings):
            # The others alone were too few to choose terms by.
            self._begin(state.training)
            return
        few = self._short or len(held_out.value) < _FEW_HELD_OUT * n
        self._sweep(1 if few else _SWEEPS_OF_HELD_OUT)

    def _by_user(self, ratings: Ratings, held_out: Int64s) -> Compressed:
        found = prepare(ratings, *self._shape, self._settings, held_out)
        has_read = self._options.get("has_read")
        if has_read is not None:
            has_read()
        return found

    def _training(self, by_user: Compressed) -> TrainingSet | None:
        """Return the training set of these ratings, None where there are none, with the scale and the codes
        of contexts that all have in common, what is held out among them.
        """
        if len(by_user.value) == 0:
            return None
        settings, (_, n_items) = self._settings, self._shape
        held_out = self._held_out = _without(self._held_out, by_user)
        scale = observed_scale(settings.scale, by_user.value, held_out.value)
        self._settings = replace(settings, scale=scale)
        n = len(by_user.value) + len(held_out.value)
        backend = choose_backend(n, threads=settings.threads)
        encoding = None
        if n < backend.most_apart and by_user.context is not None:
            contexts = [each for each in (by_user.context, held_out.context) if each is not None]
            kinds = self._options.get("context_kinds", ())
            encoding = learn_context_encoding(np.concatenate(contexts), kinds)
        if encoding is None:
            by_user = replace(by_user, context=None)
        more, attributes = int(held_out.counts.max(initial=0)), self._options.get("attributes")
        training = TrainingSet.of(by_user, n_items, backend, attributes, encoding, more=more)
        for name, columns in training.attributes.items():
            if columns.rows != training.side(name).rows:
                raise FitRefused(f"attributes of {columns.rows} {name}s, not of {training.side(name).rows}")
        return training

    def _begin(self, training: TrainingSet | None) -> None:
        """Sweep from the start that is given, where the fit may go on from it, or from one that is chosen."""
        if training is None:
            return
        start, continuation = self._options.get("start"), self._options.get("continuation")
        if start is not None and not _continues(start, self._settings, len(training), _offered(training)):
            start = None
        begin = _selection(training, self._settings, self._options["rng"], start)
        if not begin.parameters.reads_times:
            training = training.without_times()
        self._state, self._metrics = begin.on(training)
        del training
        self._short = start is not None and continuation is not None
        self._sweep(continuation if self._short else None)

    def _sweep(self, continuation: int | None) -> None:
        """Sweep until the fit has settled, or where there are many ratings as often as `continuation`."""
        state, most, progress = self._state, self._settings.sweeps, self._options.get("progress")
        if state is None:
            return
        many = len(state.training) >= _MANY_TO_SETTLE
        if continuation is not None and many:
            most = min(most, continuation)
        tolerance = self._settings.tolerance * (1.0 if many else 0.2)
        sweeps, change = 0, 0.0
        for sweeps in range(1, most + 1):
            change = state.sweep()
            if progress is not None:
                progress(sweeps, {"change": change, "noise": state.parameters.noise})
            if change < tolerance:
                break
        self._metrics = {**self._metrics, "sweeps": float(sweeps), "change": change}


def _held_out(ratings: Ratings, positions: Int64s, n_users: int) -> Compressed:
    """Return the ratings at these positions by user, which they have as their `source`."""
    if len(positions) == 0:
        return NO_HISTORIES
    out = ratings.take(positions)
    columns = (out.user_row, out.item_row, out.value, out.time)
    found = compress_pairs(*columns, n_users, context=out.context, wide=False)
    return replace(found, source=positions[found.source])


def _without(held_out: Compressed, by_user: Compressed) -> Compressed:
    """Return what is held out but pairs that `by_user` has, too: of these a later entry counts."""
    row, other = held_out.row, held_out.other
    at = by_user.places(row, other)
    end = by_user.indptr[row + 1]
    there = at < end
    there[there] = by_user.other[at[there]] == other[there]
    if not there.any():
        return held_out
    left = np.flatnonzero(~there)
    return replace(held_out.only(left), source=held_out.source[left])


def _selection(
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
                replace(side, cold_start=None, any_time=0.0),
                None if side.attribute_effects is None else training.attributes.get(name),
            )
            for name, side in _sides(known)
        )
        encoding = None if known.context is None else training.context
        known = replace(known, users=users, items=items, context=with_context(known, encoding))

        def goes_on(training: TrainingSet) -> tuple[State, dict[str, float]]:
            item_rows = start.posterior.item_codec.decode(start.items).astype(np.float64)
            user_rows = start.users.astype(np.float64)
            for (_, side), rows in zip(
                _sides(start.posterior.parameters), (user_rows, item_rows), strict=True
            ):
                move_back(side, rows)
            return State.of_rows(training, known, user_rows, item_rows), {}

        return Selection(known, goes_on)
    if n < LEAST_RATINGS or not _decides(settings):
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


def _decides(settings: FitSettings) -> bool:
    """Return whether there are terms to choose."""
    return settings.link != "gaussian" or settings.implicit_effects or settings.session_effects


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
        and (settings.session_effects or not (known.users.has_sessions or known.items.has_sessions))
        and (settings.implicit_effects or not (known.users.implicit_ridge or known.items.implicit_ridge))
        and [columns > 0 for columns in offered]
        == [columns > 0 for columns in (*known.decided_columns, known.decided_context)]
        and max(LEAST_RATINGS, known.decided / again) <= n_ratings < again * known.decided
    )


def prepare(
    ratings: Ratings, n_users: int, n_items: int, settings: FitSettings, held_out: Int64s | None = None
) -> Compressed:
    """Return the ratings by user, each pair once, without those at the positions `held_out`. Raises
    `FitRefused` for what cannot be fitted.
    """
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
    low, high = np.fmin.reduce(value, initial=math.inf), np.fmax.reduce(value, initial=-math.inf)
    # Bounds such as 0.1 + 0.2 are no exact floats.
    slack = 1e-9 * scale_range(settings.scale)
    if low < settings.scale.low - slack or high > settings.scale.high + slack:
        raise FitRefused(
            f"ratings from {low:g} to {high:g} are outside the scale "
            f"from {settings.scale.low:g} to {settings.scale.high:g}"
        )
    user, item = user.astype(np.int32, copy=False), item.astype(np.int32, copy=False)
    without = None
    if held_out is not None and len(held_out):
        without = np.zeros(len(value), dtype=np.bool_)
        without[held_out] = True
    columns, threads = (user, item, value, time, n_users), settings.threads
    return compress_pairs(*columns, context=context, wide=False, without=without, threads=threads)
