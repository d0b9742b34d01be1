"""The posterior model of explicit ratings.

Invariant: a folded-in row is what the half-step of the fit gives. It depends on the model, the other table
and the row's own history, not on the rows that are folded in beside it.
"""

import math

import numpy as np

from factors.inference.entry_moments import HalfStepInput
from factors.inference.half_step import entry_terms, half_step
from factors.inference.histories import Compressed, compress
from factors.model.columns import Columns
from factors.model.layout import COUNT, NO_SESSION, FloatTable, session_keys
from factors.model.parameters import SideName
from factors.model.quantized_rows import QuantizedTable
from factors.model.types import Bools, Float32s, Float64s, Histories
from factors.posterior.posterior_model import PosteriorModel


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
    ) -> Float64s:
        own, _ = self.parameters.side(name)
        read = QuantizedTable(table, self.item_codec) if name == "user" else table
        keep = math.nan if at is None else float(session_keys(np.array([at]), own.session_length)[0])
        data = compress(histories, len(table), whole=name == "item")
        new = self._came_after(name, current)
        inputs = HalfStepInput.of(self.parameters, name, read, data, new=new, attributes=attributes)
        rows = half_step(inputs, keep_session=keep).rows
        # A half-step knows no implicit effects of its own rows.
        if current is not None:
            rows[:, own.layout.implicit_effect] = current[:, own.layout.implicit_effect]
        return rows

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
