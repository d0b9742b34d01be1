"""The settings of a fit.

Invariant: they are checked when they are made, so that no fit starts with settings that fail.
"""

import math
from dataclasses import dataclass
from typing import Literal

from factors.errors import FitRefused
from factors.model.layout import MAX_RANK
from factors.model.scale import check_scale, ordinal_levels
from factors.model.types import Scale

# Further dimensions make each look-up and each fold-in dearer, and so do velocities: what either must bring,
# in nats of a rating not learned. A thousandth of the error.
WORTH = 0.001


@dataclass(frozen=True, slots=True)
class FitSettings:
    """Settings of `fit`. Every default suits any data set; `auto` is decided by the training ratings alone.

    `scale`: bounds and step of the ratings; a rating outside is refused. `rank`: latent dimensions. `link`:
    how a score becomes a rating. `implicit_effects`, `session_effects`: whether these terms are looked at,
    `sittings`, `drift`: these parts of the latter; held-out ratings decide. `sweeps`: at most so many; stops
    earlier when the root mean square change of the predictions in one sweep falls under `tolerance` (a
    fraction of the range of the scale; below 50,000 ratings under a fifth of it). `threads`: for kernels of
    this package, BLAS is the caller's to pin. Raises `FitRefused`.
    """

    scale: Scale
    rank: int | Literal["auto"] = "auto"
    link: Literal["auto", "gaussian", "ordinal"] = "auto"
    implicit_effects: bool = True
    session_effects: bool = True
    sittings: bool = True
    drift: bool = True
    sweeps: int = 40
    tolerance: float = 5e-4

    threads: int = 1

    def __post_init__(self) -> None:
        check_scale(self.scale)
        if self.rank != "auto" and not (_is_count(self.rank) and 1 <= self.rank <= MAX_RANK):
            raise FitRefused(f"rank must be 'auto' or a whole number from 1 to {MAX_RANK}, not {self.rank!r}")
        if self.link not in ("auto", "gaussian", "ordinal"):
            raise FitRefused(f"link must be 'auto', 'gaussian' or 'ordinal', not {self.link!r}")
        if self.link == "ordinal" and ordinal_levels(self.scale) < 2:
            raise FitRefused("the ordinal link needs a scale with more than one value")
        if not (math.isfinite(self.tolerance) and self.tolerance >= 0):
            raise FitRefused(f"tolerance must be a number >= 0, not {self.tolerance!r}")
        for name in ("sweeps", "threads"):
            value = getattr(self, name)
            if not (_is_count(value) and value >= 1):
                raise FitRefused(f"{name} must be a whole number >= 1, not {value!r}")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
