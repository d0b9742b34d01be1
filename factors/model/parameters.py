"""Everything that a generation knows besides its tables, as values with names.

Invariant: `to_model` and `from_model` undo each other exactly. The names in a `Model` are those of the first
published format, so that a generation that was stored before is read.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from factors.errors import ModelUnreadable
from factors.model.context import ContextEffects, ContextEncoding, check_encoding
from factors.model.layout import Layout, layout_of, stored_width
from factors.model.scale import ordinal_levels, scale_range
from factors.model.types import Float64s, Link, Model, Scale

# 1, and the logarithms and inverses of the two counts behind a pair (`std_calibration`).
STD_TERMS = 5

SideName = Literal["user", "item"]


@dataclass(frozen=True, slots=True)
class ColdStart:
    """The prior of rows that came after the fit, with the letters of `factors.inference.cold_start`: `mean`
    (d,) `M`, `effect` (d,) `b`, `count` `N`; `covariance` and its inverse `precision` (d, d) round that mean.
    `attribute_effects` (c, d): what the columns of the attributes add to it; None where they say nothing.
    """

    mean: Float64s
    effect: Float64s
    count: float
    # Both are kept, here and below: rows have the covariance, half-steps the precision, and to invert one
    # takes 10 us (rank 8).
    covariance: Float64s
    precision: Float64s
    attribute_effects: Float64s | None = None


@dataclass(frozen=True, slots=True)
class Drift:
    """How rows move (`factors.inference.motion`): `origin`, in seconds, and `unit`, in seconds, of the time
    that ages are counted in; the Gaussian prior of a velocity of mean 0, `covariance` and its inverse
    `precision` (d, d). `widening`: by how much that covariance exceeds what the sweeps learned.
    """

    origin: float
    unit: float
    covariance: Float64s
    precision: Float64s
    widening: float = 1.0

    def scaled(self, factor: Float64s | float) -> "Drift":
        """Return this drift with the covariance times `factor`, entry by entry."""
        return replace(self, covariance=self.covariance * factor, precision=self.precision / factor)


@dataclass(frozen=True, slots=True)
class Side:
    """Users or items: the layout of their rows and the Gaussian prior of `[latent, bias]`.

    `mean` (d,), `covariance` and its inverse `precision` (d, d). `session_length`, in units of the
    timestamps, and `session_variance`, the prior variance of the effect of a session: 0 for none.
    `implicit_ridge`: ridge of the implicit effects on this side, 0 for none. `cold_start`: the prior of rows
    that came after the fit; None while it goes on. `drift`: None where rows stand still. `attribute_effects`
    (c, d): what the columns of the attributes add to the prior mean of a row; None for nothing.
    `sitting_length`, a multiple of that of a session, and `sitting_variance`, that of the effect of a sitting
    (`factors.inference.sittings`): 0 for none. `any_time`: the share of a row's average session effect that
    its bias has, for questions without a time (`session_effects.move_to_any_time`): 0 while a fit goes on.
    """

    layout: Layout
    mean: Float64s
    covariance: Float64s
    precision: Float64s
    session_length: float = 0.0
    session_variance: float = 0.0
    implicit_ridge: float = 0.0
    cold_start: ColdStart | None = None
    drift: Drift | None = None
    attribute_effects: Float64s | None = None
    sitting_length: float = 0.0
    sitting_variance: float = 0.0
    any_time: float = 0.0

    @property
    def effect_variance(self) -> float:
        """Variance of the effect of a session of which nothing is known."""
        return self.session_variance + self.sitting_variance

    @property
    def sessions_a_sitting(self) -> float:
        """How many sessions long a sitting is, 0 without."""
        return self.sitting_length / self.session_length if self.sitting_length else 0.0

    @property
    def has_sessions(self) -> bool:
        """Whether rows of this side keep effects of their sessions."""
        return self.layout.slots > 0 and self.session_variance > 0

    @property
    def attribute_width(self) -> int:
        """How many columns of attributes priors of this side rest on, 0 for none."""
        priors: tuple[Side | ColdStart | None, ...] = (self, self.cold_start)
        effects = [prior.attribute_effects for prior in priors if prior is not None]
        return max((len(each) for each in effects if each is not None), default=0)

    def with_prior(self, mean: Float64s, covariance: Float64s) -> "Side":
        """Return this side with another prior."""
        precision = np.asarray(np.linalg.inv(covariance), dtype=np.float64)
        return replace(self, mean=mean, covariance=covariance, precision=precision)

    def with_drift(self, change: Callable[[Drift], Drift]) -> "Side":
        """Return this side with its drift changed; itself where its rows stand still."""
        return self if self.drift is None else replace(self, drift=change(self.drift))


@dataclass(frozen=True, slots=True)
class Parameters:
    """Everything a generation knows besides its tables.

    `mean`: that of all ratings. `noise`: variance of a rating (of its latent value, with the ordinal link)
    round its score. `cuts`: the cut points of the ordinal link, ascending, one fewer than it has levels;
    empty with the Gaussian link. `decided`: from so many ratings the terms were chosen, and with so many
    columns of attributes of users and of items, `decided_columns`, and of contexts, `decided_context`.
    `context`: what contexts do to users; None for nothing.
    `variance_scale`, `std_calibration` (STD_TERMS,): see `factors.training.calibration`.
    """

    link: Link
    scale: Scale
    mean: float
    noise: float
    users: Side
    items: Side
    # Arrays are made for each: dataclasses refuse a default that could be written to.
    cuts: Float64s = field(default_factory=lambda: np.zeros(0))
    decided: float = 0.0
    variance_scale: float = 1.0
    std_calibration: Float64s = field(default_factory=lambda: np.zeros(STD_TERMS))
    decided_columns: tuple[int, int] = (0, 0)
    context: ContextEffects | None = None
    decided_context: int = 0

    @property
    def reads_times(self) -> bool:
        """Whether it matters when ratings were made."""
        return self.moves or self.users.has_sessions or self.items.has_sessions

    @property
    def score_range(self) -> float:
        """The range of the scale in units of scores."""
        if len(self.cuts) < 2:
            return scale_range(self.scale) if len(self.cuts) == 0 else 2.0 * math.sqrt(self.noise)
        return float(self.cuts[-1] - self.cuts[0]) * len(self.cuts) / (len(self.cuts) - 1)

    @property
    def moves(self) -> bool:
        """Whether rows of either side have a velocity."""
        # A fit lets users alone move; a half-step takes either side.
        return self.users.drift is not None or self.items.drift is not None

    def side(self, name: SideName) -> tuple[Side, Side]:
        """Return the side of this name, and the other one."""
        return (self.users, self.items) if name == "user" else (self.items, self.users)


def to_model(parameters: Parameters) -> Model:
    """Return the parameters as named arrays."""
    # Numbers as vectors of one: the format knows arrays alone.
    arrays: dict[str, Float64s] = {
        "mean": np.array([parameters.mean]),
        "noise": np.array([parameters.noise]),
        "cuts": parameters.cuts,
        "decided": np.array([parameters.decided]),
        # As these two, and `unseen` for the cold start, were called when the first generations were stored.
        "spread": np.array([parameters.variance_scale]),
        "stretch": parameters.std_calibration,
    }
    # As of what a side has not: without attributes the bytes are those of a version that knew none.
    if any(parameters.decided_columns):
        arrays["decided_columns"] = np.array(parameters.decided_columns, dtype=np.float64)
    if parameters.decided_context:
        arrays["decided_context"] = np.array([parameters.decided_context], dtype=np.float64)
    if parameters.context is not None:
        encoding = parameters.context.encoding
        arrays["context_numbers"], arrays["context_codes"] = encoding.numbers, encoding.codes
        arrays["context_effects"] = parameters.context.effects
    for prefix, side in (("user", parameters.users), ("item", parameters.items)):
        if side.attribute_effects is not None:
            arrays[f"{prefix}_attributes"] = side.attribute_effects
        arrays[f"{prefix}_mean"] = side.mean
        arrays[f"{prefix}_covariance"] = side.covariance
        arrays[f"{prefix}_precision"] = side.precision
        terms = [side.session_length, side.session_variance, side.implicit_ridge]
        arrays[f"{prefix}_terms"] = np.array(terms)
        if side.sitting_length:
            arrays[f"{prefix}_sittings"] = np.array([side.sitting_length, side.sitting_variance])
        if side.any_time:
            arrays[f"{prefix}_any_time"] = np.array([side.any_time])
        # The format has no empty value: what a side has not is absent.
        if side.cold_start is not None:
            cold = side.cold_start
            arrays[f"{prefix}_unseen"] = np.concatenate([cold.mean, cold.effect, [cold.count]])
            arrays[f"{prefix}_unseen_matrices"] = np.vstack([cold.covariance, cold.precision])
            if cold.attribute_effects is not None:
                arrays[f"{prefix}_unseen_attributes"] = cold.attribute_effects
        if side.drift is not None:
            drift = side.drift
            arrays[f"{prefix}_drift"] = np.array([drift.origin, drift.unit, drift.widening])
            arrays[f"{prefix}_drift_covariance"] = drift.covariance
            arrays[f"{prefix}_drift_precision"] = drift.precision
    return Model(
        rank=parameters.users.layout.rank,
        link=parameters.link,
        scale=parameters.scale,
        user_width=parameters.users.layout.width,
        item_width=stored_width(parameters.items.layout),
        parameters=arrays,
    )


def from_model(model: Model) -> Parameters:
    """Return the parameters of `model`. Raises `ModelUnreadable` where a name or a shape is not as it must
    be."""
    # Stored levels and cut points must belong together: a kernel indexes one with the other.
    cuts = ordinal_levels(model.scale) - 1 if model.link == "ordinal" else 0
    mean, noise, decided, variance_scale = (
        float(_array(model, name, 1)[0]) for name in ("mean", "noise", "decided", "spread")
    )
    columns = np.zeros(2)
    if "decided_columns" in model.parameters:
        columns = _array(model, "decided_columns", 2)
    return Parameters(
        link=model.link,
        scale=model.scale,
        mean=mean,
        noise=noise,
        users=_side(model, "user"),
        items=_side(model, "item"),
        cuts=_array(model, "cuts", cuts),
        decided=decided,
        variance_scale=variance_scale,
        std_calibration=_array(model, "stretch", STD_TERMS),
        decided_columns=(int(columns[0]), int(columns[1])),
        context=_context(model),
        decided_context=int(_array(model, "decided_context", 1)[0])
        if "decided_context" in model.parameters
        else 0,
    )


def _context(model: Model) -> ContextEffects | None:
    if "context_effects" not in model.parameters:
        return None
    numbers, codes = (
        _array(model, name, len(np.atleast_1d(model.parameters.get(name, 0))), 3)
        for name in ("context_numbers", "context_codes")
    )
    encoding = ContextEncoding(numbers, codes)
    check_encoding(encoding)
    effects = _array(model, "context_effects", encoding.width, model.rank + 1)
    return ContextEffects(encoding, effects)


def _side(model: Model, name: SideName) -> Side:
    layout = layout_of(model, name)
    dim, cold_start, drift = layout.dim, None, None
    if f"{name}_unseen" in model.parameters:
        vectors = _array(model, f"{name}_unseen", 2 * dim + 1)
        matrices = _array(model, f"{name}_unseen_matrices", 2 * dim, dim)
        mean, effect, count = vectors[:dim], vectors[dim:-1], float(vectors[-1])
        effects = _effects(model, f"{name}_unseen_attributes", dim)
        cold_start = ColdStart(mean, effect, count, matrices[:dim], matrices[dim:], effects)
    # The layout has looked whether there is one: it makes the rows wider.
    if layout.moving:
        origin, unit, widening = _array(model, f"{name}_drift", 3).tolist()
        covariance, precision = (
            _array(model, f"{name}_drift_{matrix}", dim, dim) for matrix in ("covariance", "precision")
        )
        drift = Drift(origin, unit, covariance, precision, widening)
    session_length, session_variance, implicit_ridge = _array(model, f"{name}_terms", 3).tolist()
    sitting_length, sitting_variance, any_time = 0.0, 0.0, 0.0
    if f"{name}_sittings" in model.parameters:
        sitting_length, sitting_variance = _array(model, f"{name}_sittings", 2).tolist()
    if f"{name}_any_time" in model.parameters:
        any_time = float(_array(model, f"{name}_any_time", 1)[0])
    return Side(
        layout,
        _array(model, f"{name}_mean", dim),
        _array(model, f"{name}_covariance", dim, dim),
        _array(model, f"{name}_precision", dim, dim),
        session_length,
        session_variance,
        implicit_ridge,
        cold_start,
        drift,
        _effects(model, f"{name}_attributes", dim),
        sitting_length,
        sitting_variance,
        any_time,
    )


def _effects(model: Model, name: str, dim: int) -> Float64s | None:
    """Return effects (c, dim) of attributes, None where there are none."""
    found = model.parameters.get(name)
    return None if found is None else _array(model, name, len(np.atleast_1d(found)), dim)


def _array(model: Model, name: str, *shape: int) -> Float64s:
    array = model.parameters.get(name)
    if array is None:
        raise ModelUnreadable(f"the model has no parameter {name!r}")
    if array.shape != shape:
        raise ModelUnreadable(f"parameter {name!r} has the shape {array.shape}, not {shape}")
    return array
