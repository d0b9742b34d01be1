"""The unit of the scores of an ordinal model, which has none of its own.

Invariant: what leaves a fit has scores about in units of the ratings: without this, they would wander from
fit to fit.
"""

import math
from dataclasses import replace

import numpy as np

from factors.model.layout import Layout, triangle
from factors.model.parameters import Parameters, Side
from factors.model.scale import scale_range
from factors.model.types import Float64s


def score_range(parameters: Parameters) -> float:
    """Return the range of the scale in units of scores."""
    cuts = parameters.cuts
    if len(cuts) < 2:
        return scale_range(parameters.scale) if len(cuts) == 0 else 2.0 * math.sqrt(parameters.noise)
    return float(cuts[-1] - cuts[0]) * len(cuts) / (len(cuts) - 1)


def in_rating_units(
    parameters: Parameters, user_rows: Float64s, item_rows: Float64s
) -> tuple[Parameters, Float64s, Float64s]:
    """Return the same model and rows with scores about in units of the ratings. Writes to neither."""
    if parameters.link == "gaussian":
        return parameters, user_rows, item_rows
    factor = scale_range(parameters.scale) / score_range(parameters)
    # Both sides share the unit of their products; a bias has all of it.
    vector = np.append(np.full(parameters.users.layout.rank, math.sqrt(factor)), factor)
    context = parameters.context
    result = replace(
        parameters,
        mean=parameters.mean * factor,
        noise=parameters.noise * factor * factor,
        cuts=parameters.cuts * factor,
        users=_scaled_side(parameters.users, vector),
        items=_scaled_side(parameters.items, vector),
        context=context and replace(context, effects=context.effects * vector),
    )
    return (
        result,
        _scaled_rows(parameters.users.layout, user_rows, vector),
        _scaled_rows(parameters.items.layout, item_rows, vector),
    )


def _scaled_side(side: Side, vector: Float64s) -> Side:
    squares, factor = np.outer(vector, vector), float(vector[-1])
    return replace(
        side.with_drift(lambda drift: drift.scaled(squares)),
        mean=side.mean * vector,
        covariance=side.covariance * squares,
        precision=side.precision / squares,
        session_variance=side.session_variance * factor * factor,
        sitting_variance=side.sitting_variance * factor * factor,
        attribute_effects=None if side.attribute_effects is None else side.attribute_effects * vector,
    )


def _scaled_rows(layout: Layout, rows: Float64s, vector: Float64s) -> Float64s:
    triangle_rows, triangle_columns, _ = triangle(layout.dim)
    factor, rows = float(vector[-1]), rows.copy()
    rows[:, layout.velocity] *= vector[: layout.dim * layout.moving]
    rows[:, layout.mean] *= vector
    rows[:, layout.covariance] *= vector[triangle_rows] * vector[triangle_columns]
    rows[:, layout.implicit_effect] *= vector
    rows[:, layout.effects] *= factor
    rows[:, layout.variances] *= factor * factor
    return rows
