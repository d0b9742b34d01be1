"""How contexts enter a half-step and a score: a user with the context `c` is at `x + s`, `s = c W`.

Invariant: whatever reads moments asks for them in the coordinates of `x`: a half-step does not know whether
there are contexts.

The score `(x + s) . [q, 1] + b` is `x . [q, 1] + b'` with `b' = b + s . [q, 1]`. So for the users' half-step
an item has another bias at each entry, and another covariance of it; for the items' one a user has another
mean.
"""

from dataclasses import dataclass

import numpy as np

from factors.model.context import ContextEffects
from factors.model.layout import FloatTable, Layout, triangle
from factors.model.parameters import Parameters, SideName
from factors.model.types import Float32s, Float64s, Int64s


def shift_rows(
    layout: Layout, users: FloatTable, effects: ContextEffects | None, context: Float32s
) -> FloatTable:
    """Return `users` (m, width) as they are in each `context` (m, fields)."""
    if effects is None:
        return users
    moved = users.copy()
    moved[:, layout.mean] += effects.shifts(context)
    return moved


@dataclass(frozen=True, slots=True)
class ContextShifts:
    """By how much the `context` (n, fields) of each entry of a half-step moves its user by its `effects`;
    `own`: whether users are the side that is solved.
    """

    effects: ContextEffects
    context: Float32s
    own: bool

    @staticmethod
    def of(parameters: Parameters, name: SideName, context: Float32s | None) -> "ContextShifts | None":
        """Return those of the half-step of side `name` over entries with this `context`; None for none."""
        if parameters.context is None or context is None:
            return None
        return ContextShifts(parameters.context, context, name == "user")

    def all(self) -> Float64s:
        """Return by how much the users of all entries are moved, (n, d)."""
        return self.effects.shifts(self.context)

    def at(self, entries: Int64s) -> Float64s:
        """Return by how much the users of these `entries` (m,) are moved, (m, d)."""
        return self.effects.shifts(self.context[entries])

    def move_other(self, layout: Layout, mean: Float64s, covariance: Float64s) -> None:
        """Write to `mean` (n, d) and `covariance` (n, packed) of the other row of each entry where it stands
        then, in the coordinates of the side that is solved.
        """
        amount = self.all()
        if self.own:
            shift_items(layout, mean, covariance, amount)
        else:
            mean += amount


def shift_items(layout: Layout, mean: Float64s, covariance: Float64s, shift: Float64s) -> None:
    """Move the biases in `mean` (n, d) and `covariance` (n, packed) of items whose users are moved by `shift`
    (n, d). Writes into both.
    """
    rank = layout.rank
    latent = shift[:, :rank]
    mean[:, rank] += np.einsum("nk,nk->n", mean[:, :rank], latent) + shift[:, rank]
    moved = np.zeros_like(latent)
    rows, columns, _ = triangle(layout.dim)
    first = rank * (rank + 1) // 2
    # One column at a time: no matrix for each entry.
    for at, (row, column) in enumerate(zip(rows[:first].tolist(), columns[:first].tolist(), strict=True)):
        moved[:, row] += covariance[:, at] * latent[:, column]
        if row != column:
            moved[:, column] += covariance[:, at] * latent[:, row]
    shared = covariance[:, first : first + rank]
    covariance[:, first + rank] += np.einsum("nk,nk->n", latent, 2.0 * shared + moved)
    shared += moved
