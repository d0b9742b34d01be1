"""What the kernels read from a `Model`, by name. Invariant: `to_model` and `from_model` undo each other
exactly.
"""

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

import numpy as np

from factors.errors import ModelUnreadable
from factors.model.identity import Same
from factors.model.layout import Layout, slots_of_width, stored_width
from factors.model.scale import scale_levels
from factors.model.types import Float64s, Link, Model, Scale

# Numbers of the function by which standard deviations are stretched (`factors.training.calibration`).
STD_TERMS = 5

# Models whose parameters are kept at hand: a service reads those of the live one for each user who has rated.
_MODELS = 8

SideName = Literal["user", "item"]


@dataclass(frozen=True, slots=True)
class ColdStart:
    """What is known of rows that came after the fit, see `factors.inference.cold_start`: `mean` (d,) `M`,
    `effect` (d,) `b`, `count` `N`, and the `covariance` and its inverse `precision` (d, d) round that mean.
    """

    mean: Float64s
    effect: Float64s
    count: float
    covariance: Float64s
    precision: Float64s


@dataclass(frozen=True, slots=True)
class Drift:
    """How rows move, see `factors.inference.drift`: `origin` and `unit` of the time that moments and ages are
    counted in, and the Gaussian prior of a velocity, `covariance` and its inverse `precision` (d, d), of
    mean 0. `widening`: how many times what the sweeps learn the covariance of a model is.
    """

    origin: float
    unit: float
    covariance: Float64s
    precision: Float64s
    widening: float = 1.0


@dataclass(frozen=True, slots=True)
class Side:
    """Users or items: the layout of their rows and the Gaussian prior of `[latent, bias]`.

    `mean` (d,), `covariance` and its inverse `precision` (d, d). `session_length`: that of the sessions that
    have effects of their own, in units of the timestamps, 0 for none; `session_variance`: the prior variance
    of such an effect. `implicit_ridge`: ridge with which the effects of the rated sets on this side are
    learned, 0 for none. `cold_start`: the prior of rows that came after the fit; None while it goes on.
    `drift`: None where rows stay where they are.
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

    @property
    def has_sessions(self) -> bool:
        """Whether rows of this side keep effects of their sessions."""
        return self.layout.slots > 0 and self.session_variance > 0


@dataclass(frozen=True, slots=True)
class Parameters:
    """Everything a generation knows besides its tables.

    `noise`: variance of a rating (of its latent value, with the ordinal link) round its score. `cuts`: the
    cut points of the ordinal link, ascending, one fewer than the scale has levels; empty with the Gaussian
    link. `variance_scale`, `std_calibration`: see `factors.training.calibration`.
    """

    link: Link
    scale: Scale
    mean: float
    noise: float
    users: Side
    items: Side
    cuts: Float64s = field(default_factory=lambda: np.zeros(0))
    decided: float = 0.0
    variance_scale: float = 1.0
    std_calibration: Float64s = field(default_factory=lambda: np.zeros(STD_TERMS))

    @property
    def moves(self) -> bool:
        """Whether rows of either side have a velocity."""
        return self.users.drift is not None or self.items.drift is not None

    def side(self, name: SideName) -> tuple[Side, Side]:
        """The side of this name, and the other one."""
        return (self.users, self.items) if name == "user" else (self.items, self.users)


_PREFIXES = ("user", "item")


def to_model(parameters: Parameters) -> Model:
    """The parameters as named arrays."""
    arrays: dict[str, Float64s] = {
        "mean": np.array([parameters.mean]),
        "noise": np.array([parameters.noise]),
        "cuts": parameters.cuts,
        "decided": np.array([parameters.decided]),
        "spread": np.array([parameters.variance_scale]),
        "stretch": parameters.std_calibration,
    }
    for prefix, side in zip(_PREFIXES, (parameters.users, parameters.items), strict=True):
        arrays[f"{prefix}_mean"] = side.mean
        arrays[f"{prefix}_covariance"] = side.covariance
        arrays[f"{prefix}_precision"] = side.precision
        arrays[f"{prefix}_terms"] = np.array(
            [side.session_length, side.session_variance, side.implicit_ridge]
        )
        if side.cold_start is not None:
            cold_start = side.cold_start
            arrays[f"{prefix}_unseen"] = np.concatenate(
                [cold_start.mean, cold_start.effect, [cold_start.count]]
            )
            arrays[f"{prefix}_unseen_matrices"] = np.vstack([cold_start.covariance, cold_start.precision])
        if side.drift is not None:
            arrays[f"{prefix}_drift"] = np.array([side.drift.origin, side.drift.unit, side.drift.widening])
            arrays[f"{prefix}_drift_covariance"] = side.drift.covariance
            arrays[f"{prefix}_drift_precision"] = side.drift.precision
    return Model(
        rank=parameters.users.layout.rank,
        link=parameters.link,
        scale=parameters.scale,
        user_width=parameters.users.layout.width,
        item_width=stored_width(parameters.items.layout),
        parameters=arrays,
    )


def from_model(model: Model) -> Parameters:
    """The parameters of `model`, which must not be written to once they have been read. Raises
    `ModelUnreadable` where a name, a shape or a value is not as it must be.
    """
    return _read(Same(model))


@lru_cache(maxsize=_MODELS)
def _read(same: Same[Model]) -> Parameters:
    model = same.value
    try:
        sides = [
            _side(model, prefix, width)
            for prefix, width in zip(_PREFIXES, (model.user_width, model.item_width), strict=True)
        ]
        mean, noise, decided = (model.parameters[name] for name in ("mean", "noise", "decided"))
        cuts, variance_scale, std_calibration = (
            model.parameters[name] for name in ("cuts", "spread", "stretch")
        )
    except KeyError as exc:
        raise ModelUnreadable(f"the model has no parameter {exc}") from exc
    if not mean.shape == noise.shape == decided.shape == variance_scale.shape == (1,):
        raise ModelUnreadable("mean, noise, decided and spread of a model are one number each")
    if std_calibration.shape != (STD_TERMS,):
        raise ModelUnreadable(f"the stretch of a model is {STD_TERMS} numbers")
    if cuts.shape != ((scale_levels(model.scale) - 1,) if model.link == "ordinal" else (0,)):
        raise ModelUnreadable("the cut points of a model do not fit its scale")
    return Parameters(
        link=model.link,
        scale=model.scale,
        mean=float(mean[0]),
        noise=float(noise[0]),
        users=sides[0],
        items=sides[1],
        cuts=cuts,
        decided=float(decided[0]),
        variance_scale=float(variance_scale[0]),
        std_calibration=std_calibration,
    )


def _side(model: Model, prefix: str, width: int) -> Side:
    moving = f"{prefix}_drift" in model.parameters
    slots = slots_of_width(model.rank, width, moving=moving, stored=prefix == "item")
    if slots < 0:
        raise ModelUnreadable(f"{prefix} rows of {width} numbers do not fit rank {model.rank}")
    layout = Layout(model.rank, slots, moving)
    mean = model.parameters[f"{prefix}_mean"]
    covariance = model.parameters[f"{prefix}_covariance"]
    precision = model.parameters[f"{prefix}_precision"]
    terms = model.parameters[f"{prefix}_terms"]
    square = (layout.dim, layout.dim)
    if (
        mean.shape != (layout.dim,)
        or covariance.shape != square
        or precision.shape != square
        or terms.shape != (3,)
    ):
        raise ModelUnreadable(f"the {prefix} prior does not have the shape of rank {model.rank}")
    drift = None
    if moving:
        clock = model.parameters[f"{prefix}_drift"]
        velocity_covariance, velocity_precision = (
            model.parameters[f"{prefix}_drift_{name}"] for name in ("covariance", "precision")
        )
        if clock.shape != (3,) or velocity_covariance.shape != square or velocity_precision.shape != square:
            raise ModelUnreadable(f"the drift of {prefix} rows does not have the shape of rank {model.rank}")
        drift = Drift(
            float(clock[0]), float(clock[1]), velocity_covariance, velocity_precision, float(clock[2])
        )
    session_length, session_variance, implicit_ridge = (float(number) for number in terms)
    return Side(
        layout,
        mean,
        covariance,
        precision,
        session_length,
        session_variance,
        implicit_ridge,
        _cold_start(model, prefix, layout.dim),
        drift,
    )


def _cold_start(model: Model, prefix: str, dim: int) -> ColdStart | None:
    vectors = model.parameters.get(f"{prefix}_unseen")
    if vectors is None:
        return None
    matrices = model.parameters[f"{prefix}_unseen_matrices"]
    if vectors.shape != (2 * dim + 1,) or matrices.shape != (2 * dim, dim):
        raise ModelUnreadable(f"the prior of new {prefix} rows does not have the shape of rank {model.rank}")
    return ColdStart(vectors[:dim], vectors[dim:-1], float(vectors[-1]), matrices[:dim], matrices[dim:])
