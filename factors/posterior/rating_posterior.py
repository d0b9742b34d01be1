"""The posterior model of explicit ratings.

Invariant: a folded-in row is what the half-step of the fit gives. It depends on the model, the other table
and the row's own history, not on the rows that are folded in beside it.
"""

import math
from dataclasses import replace
from functools import cached_property

import numpy as np

from factors.inference.backend import HalfStepBackend
from factors.inference.cold_start import known_effects
from factors.inference.compiled.history import LOADED, HistoryTerms
from factors.inference.entry_moments import HalfStepInput
from factors.inference.half_step import Iteration, begun, entry_terms, half_step
from factors.inference.histories import Compressed, compress
from factors.model.columns import Columns
from factors.model.layout import COUNT, NO_SESSION, FloatTable, session_keys
from factors.model.parameters import SideName
from factors.model.quantized_rows import QuantizedTable
from factors.model.types import Bools, Float32s, Float64s, Histories
from factors.posterior.posterior_model import PosteriorModel

# Whole tables are folded in to compare fits: near enough, in units of the noise deviation.
_NEAR = 1e-3


class RatingPosterior(PosteriorModel):
    """Users and items fitted to explicit ratings, with either link, at rest or moving."""

    def keeps_time(self, user: Float32s, time: float) -> bool:
        """See `PosteriorModel.keeps_time`."""
        side = self.parameters.users
        if not side.has_sessions or not math.isfinite(time):
            return True
        keys = user[side.layout.keys]
        # A row with a free slot has dropped no session.
        return bool(
            (keys == NO_SESSION).any() or (keys == session_keys(np.array([time]), side.session_length)).any()
        )

    def entry_terms(
        self, items: Float32s, data: Compressed, current: Float32s | None, attributes: Columns | None = None
    ) -> tuple[Float64s, Float64s]:
        """See `PosteriorModel.entry_terms`."""
        new, table = self._came_after("user", current), QuantizedTable(items, self.item_codec)
        known = self._known("user", attributes)
        return entry_terms(HalfStepInput.of(self.parameters, "user", table, data, new=new, attributes=known))

    def _rows(
        self,
        name: SideName,
        table: Float32s,
        histories: Histories,
        current: Float32s | None,
        at: float | None,
        *,
        attributes: Columns | None,
        backend: HalfStepBackend | None,
    ) -> Float64s:
        own, _ = self.parameters.side(name)
        new = self._came_after(name, current)
        keep = math.nan if at is None else float(session_keys(np.array([at]), own.session_length)[0])
        rows, loop, terms = None, LOADED.loop, self._loop_terms[name]
        if loop is not None and backend is None:
            rows = terms.rows(loop, table, histories, new=new, attributes=attributes, keep=keep)
        if rows is None:
            read = QuantizedTable(table, self.item_codec) if name == "user" else table
            data = compress(histories, len(table), whole=name == "item")
            inputs = HalfStepInput.of(self.parameters, name, read, data, new=new, attributes=attributes)
            if backend is None:
                rows = half_step(inputs, keep_session=keep).rows
            else:
                rows = _many(name, inputs, backend, current)
        # A half-step knows no implicit effects of its own rows.
        if current is not None:
            rows[:, own.layout.implicit_effect] = current[:, own.layout.implicit_effect]
        return rows

    @cached_property
    def _loop_terms(self) -> dict[SideName, HistoryTerms]:
        parameters = self.parameters
        return {
            "user": HistoryTerms.of(parameters, "user", self.item_codec),
            "item": HistoryTerms.of(parameters, "item", None),
        }

    def _came_after(self, name: SideName, current: FloatTable | None) -> Bools | None:
        """Return which of the rows `current` (b, width) came after the fit; None where that makes no
        difference.
        """
        own, other = self.parameters.side(name)
        if current is None or own.cold_start is None:
            return None
        if other.implicit_ridge <= 0:
            return np.asarray(current[:, COUNT] == 0)
        # Only a fit learns implicit effects, so a row that has none was in no fit.
        return np.asarray(~current[:, own.layout.implicit_effect].any(axis=1))


def _many(
    name: SideName, inputs: HalfStepInput, backend: HalfStepBackend, current: FloatTable | None
) -> Float64s:
    """Return the rows (b, width) of `inputs` of side `name`, which are `current` so far; by numpy those that
    came after the fit, and those with a rating of an unknown other row: a backend knows neither.
    """
    data, table = inputs.data, inputs.table
    table = table.expanded() if isinstance(table, QuantizedTable) else table
    effects = table[:, inputs.other.layout.implicit_effect].astype(np.float64)
    known = known_effects(inputs.own, effects)
    if known is not effects:
        table = table.copy()
        table[:, inputs.other.layout.implicit_effect] = known
    apart = data.counts == 0 if inputs.new is None else inputs.new | (data.counts == 0)
    apart[data.row[data.other < 0]] = True

    def part(of: Bools) -> HalfStepInput:
        entries = data.only(np.flatnonzero(of[data.row]))
        return HalfStepInput.of(
            *(inputs.parameters, name, table, entries), new=inputs.new, attributes=inputs.attributes
        )

    given = part(~apart) if apart.any() else replace(inputs, table=table)
    begin = None if current is None else begun(given, current.astype(np.float64))
    rows = backend.half_step(given, Iteration(begin=begin, at_rest=_NEAR, spent=True)).rows
    if not apart.any():
        return rows
    rows[apart] = half_step(part(apart)).rows[apart]
    return rows
