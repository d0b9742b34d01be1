"""The fit: variational ALS sweeps to a posterior of every user and item (Lim and Teh, 2007; Bishop, 2006,
chapter 10).

Invariant: what `fit` returns is finite, and its user rows are what `fold_in_users` gives with its item rows.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from factors.errors import FitDiverged, FitRefused
from factors.foldin import fold_in_users
from factors.halfstep import half_step, prior_rows
from factors.histories import Compressed, compress_pairs
from factors.parameters import Parameters, from_model, to_model
from factors.priors import fitted_prior, learn_side, prior_model, scale_range, start_parameters
from factors.scoring import Scorer
from factors.settings import FitSettings
from factors.tables import Fitted, Float64s, Histories, Ratings

Progress = Callable[[int, dict[str, float]], None]
# Pairs whose packed covariances are in memory at once.
_PAIRS_AT_ONCE = 1 << 16
_RANK = 8


def fit(
    ratings: Ratings,
    n_users: int,
    n_items: int,
    *,
    settings: FitSettings,
    rng: np.random.Generator,
    start: Fitted | None = None,
    progress: Progress | None = None,
) -> Fitted:
    """Fit `ratings` of `n_users` x `n_items`; users (n_users, w) and items (n_items, w') of the result are
    float32.

    `start`: an earlier fit, perhaps of fewer users and items, to begin from; it is used where its rank is the
    same, and changes how long the fit takes. `progress(sweep, metrics)` is called after each sweep; what it
    raises ends the fit. Raises `FitRefused` where the input cannot be fitted and `FitDiverged` where the
    result is not finite.
    """
    users, items = prepare(ratings, n_users, n_items, settings)
    if len(users.value) == 0:
        model = prior_model(settings)
        return fitted_prior(model, from_model(model), n_users, n_items)
    state = _State.begin(users, items, settings, rng, start)
    sweeps = 0
    for sweeps in range(1, settings.sweeps + 1):
        change = state.sweep()
        if progress is not None:
            progress(sweeps, state.metrics())
        if change < settings.tolerance * scale_range(settings.scale):
            break
    return finish(
        state.parameters,
        state.item_rows,
        ratings_histories(users),
        state.metrics() | {"sweeps": float(sweeps)},
    )


def prepare(
    ratings: Ratings, n_users: int, n_items: int, settings: FitSettings
) -> tuple[Compressed, Compressed]:
    """The ratings by user and by item, each pair once. Raises `FitRefused` for what cannot be fitted."""
    user, item = np.asarray(ratings.user_row), np.asarray(ratings.item_row)
    value, time = np.asarray(ratings.value, dtype=np.float64), np.asarray(ratings.time, dtype=np.float64)
    if n_users < 0 or n_items < 0:
        raise FitRefused("numbers of users and items cannot be below 0")
    if not (user.ndim == 1 and user.shape == item.shape == value.shape == time.shape):
        raise FitRefused("user rows, item rows, values and times must be vectors of one length")
    for name, rows, size in (("user", user, n_users), ("item", item, n_items)):
        if len(rows) and (rows.dtype.kind not in "iu" or rows.min() < 0 or rows.max() >= size):
            raise FitRefused(f"a {name} row is outside the table of {size} rows")
    # A NaN rating takes a pair back, here as in histories.
    known = value[~np.isnan(value)]
    slack = 1e-9 * scale_range(settings.scale)
    if len(known) and (known.min() < settings.scale.low - slack or known.max() > settings.scale.high + slack):
        raise FitRefused(
            f"ratings from {known.min():g} to {known.max():g} are outside the scale "
            f"from {settings.scale.low:g} to {settings.scale.high:g}"
        )
    users = compress_pairs(user.astype(np.int64), item.astype(np.int64), value, time, n_users)
    items = compress_pairs(users.other, users.row, users.value, users.time, n_items)
    return users, items


def ratings_histories(users: Compressed) -> Histories:
    """The ratings by user as histories to fold in."""
    return Histories(users.indptr, users.other.astype(np.int32), users.value, users.time)


def finish(
    parameters: Parameters, item_rows: Float64s, histories: Histories, metrics: dict[str, float]
) -> Fitted:
    """The tables as they are published: items in float32, users folded in with exactly these. Raises
    `FitDiverged`.
    """
    model = to_model(parameters)
    items = item_rows.astype(np.float32)
    if not (
        np.isfinite(items).all() and all(np.isfinite(array).all() for array in model.parameters.values())
    ):
        raise FitDiverged("the fit gave item rows or priors that are not finite")
    users = fold_in_users(model, items, histories)
    if not np.isfinite(users).all():
        raise FitDiverged("the fit gave user rows that are not finite")
    return Fitted(model, users, items, metrics)


class _State:
    """A fit between two sweeps."""

    def __init__(
        self,
        parameters: Parameters,
        item_rows: Float64s,
        users: Compressed,
        items: Compressed,
        settings: FitSettings,
    ) -> None:
        self.parameters = parameters
        self.item_rows = item_rows
        self.user_rows = prior_rows(parameters.users, users.rows)
        self._users, self._items = users, items
        self._user_of_entry = users.row
        self._settings = settings
        self._predictions = np.full(len(users.value), parameters.mean)
        self._change = np.inf

    @staticmethod
    def begin(
        users: Compressed,
        items: Compressed,
        settings: FitSettings,
        rng: np.random.Generator,
        start: Fitted | None,
    ) -> "_State":
        rank = _RANK if settings.rank == "auto" else settings.rank
        if (
            start is not None
            and (settings.rank == "auto" or start.model.rank == rank)
            and start.model.link == "gaussian"
        ):
            known = from_model(start.model)
            parameters = replace(known, scale=settings.scale)
            item_rows = prior_rows(parameters.items, items.rows)
            shared = min(len(start.items), items.rows)
            item_rows[:shared] = start.items[:shared]
            return _State(parameters, item_rows, users, items, settings)
        parameters = start_parameters(
            settings.scale, rank, float(users.value.mean()), float(users.value.var())
        )
        item_rows = prior_rows(parameters.items, items.rows)
        # Random directions break the symmetry between the dimensions; as large as the prior says that they
        # are.
        spread = np.sqrt(np.diag(parameters.items.covariance)[:-1])
        item_rows[:, parameters.items.layout.latent] = rng.standard_normal((items.rows, rank)) * spread
        return _State(parameters, item_rows, users, items, settings)

    def sweep(self) -> float:
        """Users, items, priors, noise. Returns the root mean square change of the predictions."""
        block = self._settings.block_rows
        self.user_rows = half_step(self.parameters, "user", self.item_rows, self._users, block_rows=block)
        self.item_rows = half_step(self.parameters, "item", self.user_rows, self._items, block_rows=block)
        users = learn_side(self.parameters.users, self.user_rows)
        items = learn_side(self.parameters.items, self.item_rows)
        self._learn_noise()
        self.parameters = replace(self.parameters, users=users, items=items)
        return self._change

    def metrics(self) -> dict[str, float]:
        """What is known of the fit so far."""
        error = self._users.value - np.clip(
            self._predictions, self.parameters.scale.low, self.parameters.scale.high
        )
        return {
            "train_rmse": float(np.sqrt(np.mean(error * error))),
            "noise": self.parameters.noise,
            "change": float(self._change),
        }

    def _learn_noise(self) -> None:
        users = self._users
        scorer = Scorer(to_model(self.parameters), self.item_rows)
        predictions = np.empty(len(users.value))
        squares = 0.0
        for start in range(0, len(users.value), _PAIRS_AT_ONCE):
            part = slice(start, start + _PAIRS_AT_ONCE)
            mean, variance, _ = scorer.latent(
                self.user_rows, self._user_of_entry[part], users.other[part], users.time[part]
            )
            predictions[part] = mean
            squares += float(((users.value[part] - mean) ** 2 + variance).sum())
        self._change = float(np.sqrt(np.mean((predictions - self._predictions) ** 2)))
        self._predictions = predictions
        # One pseudo-rating of the old noise, and a floor: a world without noise must not divide by zero.
        floor = (1e-3 * scale_range(self.parameters.scale)) ** 2
        noise = max((squares + self.parameters.noise) / (len(users.value) + 1.0), floor)
        self.parameters = replace(self.parameters, noise=noise)
