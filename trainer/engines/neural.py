"""The neural engine: items by a network, users by its Bayesian last layer, published as any other fit.

Invariant: the user rows are what `fold_in_users` gives with the item rows, however these came about. Torch is
imported here only, in the process of a fit.
"""

import math
from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp
from threadpoolctl import threadpool_limits

from factors import (
    FitDiverged,
    FitRefused,
    FitSettings,
    Fitted,
    Float64s,
    Ratings,
    Scale,
    all_finite_items,
    posterior_of,
    read_items,
    store_items,
)
from factors.inference.half_step import entry_scores, half_step
from factors.inference.histories import Compressed, compress_pairs
from factors.inference.side_moments import prior_rows
from factors.model.layout import COUNT, item_layout
from factors.model.parameters import Parameters, Side, from_model, to_model
from factors.model.scale import scale_range
from factors.training.fit import prepare, ratings_histories
from factors.training.priors import fitted_prior, learn_side, prior_model, start_parameters
from trainer.engines import Report
from trainer.engines.variational import VariationalEngine

if TYPE_CHECKING:
    from trainer.engines.network import Beginning, Trained

MISSING = "the neural engine needs torch: pip install foldin[neural]"
_RANK = 8
# Sweeps of the priors and the noise with the network's items: they settle in fewer.
_SETTLING = 4
# Ratings at the mean that a rating's item has besides its own, where the network is told of it.
_SHRINKAGE = 5.0
# With fewer ratings there is nothing for a network to learn.
_LEAST_RATINGS = 100


class NeuralEngine:
    """A network trained through the fold-in (`trainer.engines.network`)."""

    def __init__(self, settings: FitSettings) -> None:
        """Raises `FitRefused` where torch is not installed."""
        try:
            self._torch: Any = import_module("torch")
        except ImportError as exc:
            raise FitRefused(MISSING) from exc
        self._settings = settings

    def fit(
        self,
        ratings: Ratings,
        n_users: int,
        n_items: int,
        *,
        rng: np.random.Generator,
        start: Fitted | None,
        report: Report,
    ) -> Fitted:
        """See `Engine.fit`."""
        users = prepare(ratings, n_users, n_items, self._settings)
        if len(users.value) < _LEAST_RATINGS:
            settings = replace(self._settings, link="gaussian")
            if len(users.value):
                return VariationalEngine(settings).fit(
                    ratings, n_users, n_items, rng=rng, start=None, report=report
                )
            model = prior_model(settings)
            return fitted_prior(model, from_model(model), n_users, n_items)
        self._torch.set_num_threads(self._settings.threads)
        with threadpool_limits(limits=self._settings.threads, user_api="blas"):
            return self._fit(users, n_items, rng, start, report)

    def held_out(self, fitted: Fitted, known: Ratings, unseen: Ratings) -> dict[str, float]:
        """See `Engine.held_out`: root mean square error."""
        return VariationalEngine(self._settings).held_out(fitted, known, unseen)

    def _fit(
        self, users: Compressed, n_items: int, rng: np.random.Generator, start: Fitted | None, report: Report
    ) -> Fitted:
        from trainer.engines.network import train

        items = compress_pairs(users.other, users.row, users.value, users.time, n_items)
        rank = _RANK if self._settings.rank == "auto" else self._settings.rank
        warm = start is not None and _continues(start, rank, self._settings)
        mean = float(users.value.mean())
        if warm and start is not None:
            mean = from_model(start.model).mean
        # The network works in units of the deviation of ratings, whatever the scale.
        unit = max(float(users.value.std()), 1e-3 * scale_range(self._settings.scale))
        parameters = start_parameters(Scale(-1.0, 1.0), rank, 0.0, 1.0)
        begin = _beginning(parameters, start if warm else None, n_items, unit, rng)
        value = (users.value - mean) / unit
        try:
            trained = train(users, _known(items, mean, unit), value, begin, warm=warm, rng=rng, report=report)
        except self._torch.linalg.LinAlgError as exc:
            raise FitDiverged(f"the network gave features that cannot be solved: {exc}") from exc
        arrays = (trained.items, trained.effects, trained.mean, trained.covariance)
        if not (math.isfinite(trained.loss) and all(np.isfinite(array).all() for array in arrays)):
            raise FitDiverged("the network gave features that are not finite")
        rescaled = _in_rating_units(parameters, trained, unit)
        known = replace(rescaled, scale=self._settings.scale, mean=mean)
        bias = np.append(np.ones(rank), unit)
        return _published(
            known, trained.items * bias, trained.effects * unit, users, items, loss=trained.loss
        )


def _continues(start: Fitted, rank: int, settings: FitSettings) -> bool:
    model = start.model
    return (
        model.feedback == "explicit"
        and model.link == "gaussian"
        and model.rank == rank
        and model.scale == settings.scale
    )


def _beginning(
    parameters: Parameters, start: Fitted | None, n_items: int, unit: float, rng: np.random.Generator
) -> "Beginning":
    """The items of `start`, and random directions for the others; the prior of its users, or a broad one. All
    in units of `unit`.
    """
    from trainer.engines.network import Beginning

    side = parameters.users
    spread = np.sqrt(np.diag(side.covariance))
    items = rng.standard_normal((n_items, side.layout.dim)) * spread
    items[:, -1] = 0.0
    effects = np.zeros_like(items)
    mean, covariance, noise = side.mean, side.covariance, parameters.noise
    if start is not None:
        layout = item_layout(start.model)
        known = read_items(start.model, start.items[:n_items]).astype(np.float64)
        rated = np.flatnonzero(known[:, COUNT] > 0)
        items[rated] = known[rated, layout.mean]
        items[rated, -1] /= unit
        effects[rated] = known[rated, layout.implicit_effect] / unit
        earlier = from_model(start.model)
        mean, covariance = earlier.users.mean / unit, earlier.users.covariance / unit**2
        noise = earlier.noise / unit**2
    return Beginning(items, effects, spread, mean, covariance, noise)


def _in_rating_units(parameters: Parameters, trained: "Trained", unit: float) -> Parameters:
    """Priors and noise of the network where user rows and item biases are in units of the ratings."""
    items = parameters.items
    bias = np.append(np.ones(items.layout.rank), unit)
    return replace(
        parameters,
        noise=trained.noise * unit**2,
        users=_side(parameters.users, trained.mean * unit, trained.covariance * unit**2),
        items=_side(items, items.mean * bias, items.covariance * np.outer(bias, bias)),
    )


def _known(items: Compressed, mean: float, unit: float) -> Float64s:
    """What the network is told of each item (n_items, 3): log count, and mean and spread of its ratings."""
    counts = items.counts.astype(np.float64)
    deviation = (items.value - mean) / unit
    total = np.bincount(items.row, deviation, items.rows)
    square = np.bincount(items.row, deviation * deviation, items.rows)
    shrunk = total / (counts + _SHRINKAGE)
    variance = (square + _SHRINKAGE * float(np.mean(deviation**2))) / (counts + _SHRINKAGE) - shrunk**2
    return np.column_stack([np.log1p(counts) / 5.0, shrunk, np.sqrt(np.maximum(variance, 0.0))])


def _published(
    parameters: Parameters,
    means: Float64s,
    effects: Float64s,
    users: Compressed,
    items: Compressed,
    *,
    loss: float,
) -> Fitted:
    """The network's items with the spread that their raters leave; priors and noise learned with these."""
    layout = parameters.users.layout
    rated = items.counts > 0
    item_rows = prior_rows(parameters.items, items.rows)
    item_rows[:, COUNT] = items.counts
    item_rows[rated, layout.mean] = means[rated]
    effects = np.where(rated[:, None], effects, 0.0)
    item_rows[:, layout.implicit_effect] = effects
    parameters = replace(parameters, items=learn_side(parameters.items, item_rows))
    offsets = _offsets(users, effects)
    for _ in range(_SETTLING):
        step = half_step(parameters, "user", item_rows, users)
        item_rows = half_step(parameters, "item", step.rows, items).rows
        item_rows[rated, layout.mean] = means[rated]
        item_rows[:, layout.implicit_effect] = effects
        scores = entry_scores(parameters, "user", item_rows, users, current=step, sessions=None)
        square = (users.value - scores.mean) ** 2 + scores.own_variance + scores.other_variance
        parameters = replace(
            parameters,
            noise=max(float(square.mean()), (1e-3 * scale_range(parameters.scale)) ** 2),
            users=learn_side(parameters.users, step.rows, offsets),
            items=learn_side(parameters.items, item_rows),
        )
    model = to_model(parameters)
    table = store_items(model, item_rows)
    rows = posterior_of(model).fold_in_users(table, ratings_histories(users))
    if not (all_finite_items(model, table) and np.isfinite(rows).all()):
        raise FitDiverged("the neural engine gave rows that are not finite")
    return Fitted(model, rows, table, {"loss": loss, "noise": parameters.noise})


def _side(side: Side, mean: Float64s, covariance: Float64s) -> Side:
    return replace(
        side, mean=mean, covariance=covariance, precision=np.asarray(np.linalg.inv(covariance), np.float64)
    )


def _offsets(users: Compressed, effects: Float64s) -> Float64s:
    """What the set effects add to the prior mean of each user."""
    counts = users.counts
    design = sp.csr_array(
        (np.repeat(1.0 / np.sqrt(np.maximum(counts, 1)), counts), users.other, users.indptr),
        shape=(users.rows, len(effects)),
    )
    return np.asarray(design @ effects)
