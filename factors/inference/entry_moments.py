"""The entries of a half-step: the moments of each that no posterior changes, and its score under a posterior.

Invariant: nothing here is changed by a step of the fixed point, so that it is read once for all of them.
"""

from dataclasses import dataclass

import numpy as np

from factors.inference.context import ContextShifts
from factors.inference.histories import NO_SESSIONS, Compressed, Sessions, group_sessions
from factors.inference.motion import Motion, motion_of
from factors.inference.ordinal import EntryScores
from factors.inference.segments import entry_products, gathered
from factors.inference.session_effects import (
    NO_EFFECTS,
    NoSessionBlock,
    SessionBlock,
    SessionEffects,
    session_block,
)
from factors.inference.side_moments import SideMoments, gather_side_moments
from factors.model.columns import Columns
from factors.model.layout import pack, triangle
from factors.model.parameters import Parameters, Side, SideName
from factors.model.quantized_rows import Table
from factors.model.types import Bools, Float64s, Int64s


@dataclass(frozen=True, slots=True)
class HalfStepInput:
    """What a half-step of side `own` computes from: its histories `data` with their `sessions`, and the
    `table` (n, width) of the side `other`. `new` (b,): the rows that came after the fit (`cold_start`),
    beside those without ratings; None where it makes no difference. `attributes`: of the rows, None for none.
    `shifts`: what contexts do at the entries, None for nothing.
    """

    parameters: Parameters
    own: Side
    other: Side
    table: Table
    data: Compressed
    sessions: Sessions
    new: Bools | None
    attributes: Columns | None = None
    shifts: ContextShifts | None = None

    @staticmethod
    def of(
        parameters: Parameters,
        name: SideName,
        table: Table,
        data: Compressed,
        *,
        sessions: Sessions | None = None,
        new: Bools | None = None,
        attributes: Columns | None = None,
    ) -> "HalfStepInput":
        """Return the input of side `name`; `sessions`: those of `data`, where they are known already."""
        own, other = parameters.side(name)
        if not own.has_sessions:
            sessions = NO_SESSIONS
        elif sessions is None:
            sessions = group_sessions(data, own.session_length, own.sitting_length)
        shifts = ContextShifts.of(parameters, name, data.context)
        return HalfStepInput(parameters, own, other, table, data, sessions, new, attributes, shifts)


@dataclass(frozen=True, slots=True)
class Posterior:
    """Of b rows: `mean` (b, D) of their states, packed `covariance` (b, parts * packed), both as `motion` has
    them, and the `effects` of their sessions.
    """

    mean: Float64s
    covariance: Float64s
    effects: SessionEffects = NO_EFFECTS


@dataclass(frozen=True, slots=True)
class Block:
    """Rows that are solved together, their `entries`, which `indptr` (b + 1,) parts, and their sessions."""

    rows: slice
    entries: slice
    indptr: Int64s
    sessions: SessionBlock | NoSessionBlock


@dataclass(frozen=True, slots=True)
class EntryMoments:
    """The entries (n,) of a half-step. `row`: their row; `other`: the rows of the other side; `offset`: the
    part of a score that no posterior changes.
    """

    inputs: HalfStepInput
    other: SideMoments
    row: Int64s
    offset: Float64s
    motion: Motion
    blocks: tuple[Block, ...]

    @staticmethod
    def of(inputs: HalfStepInput, block_rows: int) -> "EntryMoments":
        """Return the entries of `inputs`, in blocks of `block_rows` rows."""
        data = inputs.data
        other = gather_side_moments(inputs.other, inputs.table, data, inputs.shifts)
        motion = motion_of(inputs.own, data)
        blocks = []
        for start in range(0, data.rows, block_rows):
            rows = slice(start, min(start + block_rows, data.rows))
            indptr = data.indptr[start : rows.stop + 1]
            entries = slice(int(indptr[0]), int(indptr[-1]))
            of_rows = session_block(inputs.sessions, other, motion, rows)
            blocks.append(Block(rows, entries, indptr - entries.start, of_rows))
        offset = inputs.parameters.mean + other.session_effect
        return EntryMoments(inputs, other, data.row, offset, motion, tuple(blocks))

    def scores(self, at: Posterior) -> EntryScores:
        """Return the moments of the score of each entry under the posterior `at`."""
        other, motion, layout = self.other, self.motion, self.inputs.own.layout
        multiplicity = triangle(layout.dim)[2]
        latent_packed = layout.rank * (layout.rank + 1) // 2
        several = (len(at.mean), motion.parts, layout.packed)
        covariance, second = at.covariance.reshape(several), motion.squares(at.mean)
        # A view: `second` becomes what the covariances of the other side are multiplied with.
        by_part = second.reshape(several)
        by_part[:, :, :latent_packed] += covariance[:, :, :latent_packed]
        by_part *= multiplicity
        own_weights = (covariance * multiplicity).reshape(second.shape)
        # The feature of the bias is 1.
        columns = other.columns
        mean = entry_products(self.row, columns, motion.linear_powers, at.mean, other.features)
        mean += gathered(other.bias, columns)
        mean += self.offset
        own_variance = entry_products(self.row, columns, motion.powers, own_weights, other.direct)
        other_variance = entry_products(self.row, columns, motion.powers, second, other.covariance)
        # Rows of an earlier fit come with rounded covariances, of which some have a negative direction.
        np.maximum(other_variance, 0.0, out=other_variance)
        # The session of the other side is one number: all of its variance counts.
        other_variance += other.session_variance
        for block in self.blocks:
            block.sessions.add_to_scores(at.effects, mean, own_variance)
        return EntryScores(mean, own_variance, other_variance, self.offset)

    def prior(self) -> Posterior:
        """Return the posterior of rows of which nothing is known but the prior."""
        own, motion, rows = self.inputs.own, self.motion, self.inputs.data.rows
        # The fixed point does not depend on it; rows of few ratings are nearer to the prior of new ones.
        prior = own.cold_start or own
        mean = np.broadcast_to(prior.mean, (rows, own.layout.dim))
        covariance = np.broadcast_to(pack(prior.covariance[None]), (rows, own.layout.packed))
        states = motion.states(mean)
        effects = SessionEffects.prior(self.inputs.sessions, own.effect_variance, states.shape[1])
        return Posterior(states, motion.covariances(covariance), effects)
