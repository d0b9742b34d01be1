"""The entries of a half-step: the moments of each that no posterior changes, and its score under a posterior.

Invariant: nothing here is changed by a step of the fixed point, so that it is read once for all of them.
"""

from dataclasses import dataclass

import numpy as np

from factors.inference.histories import Compressed, Sessions
from factors.inference.motion import Motion, motion_of
from factors.inference.ordinal import EntryScores
from factors.inference.segments import FEW, entry_products
from factors.inference.session_effects import (
    NO_EFFECTS,
    NoSessionBlock,
    SessionBlock,
    SessionEffects,
    session_block,
)
from factors.inference.side_moments import SideMoments, gather_side_moments
from factors.model.layout import pack, triangle
from factors.model.parameters import Parameters, Side, SideName
from factors.model.quantized_rows import Table
from factors.model.types import Float64s, Int64s


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
    """The entries (n,) of a half-step of side `own`. `row`: their row; `columns` as for `segment_sums`: where
    they find their other row in `other`; `offset`: the part of a score that no posterior changes.
    """

    own: Side
    other: SideMoments
    data: Compressed
    row: Int64s
    columns: Int64s | None
    offset: Float64s
    motion: Motion
    sessions: Sessions
    blocks: tuple[Block, ...]

    @staticmethod
    def of(
        parameters: Parameters,
        name: SideName,
        table: Table,
        data: Compressed,
        *,
        sessions: Sessions,
        block_rows: int,
    ) -> "EntryMoments":
        """The entries of `data`, the histories of side `name`; `table` (m, width) has the other side."""
        own, other_side = parameters.side(name)
        other, index = gather_side_moments(other_side, table, data)
        columns: Int64s | None = index
        if len(index) <= FEW:
            # Of few entries each has its own row: sums over them need no indirection.
            if len(other.bias) > len(index) or not np.array_equal(index, np.arange(len(index))):
                other = other.taken(index)
            columns = None
        motion = motion_of(own, data)
        blocks = []
        for start in range(0, data.rows, block_rows):
            rows = slice(start, min(start + block_rows, data.rows))
            indptr = data.indptr[start : rows.stop + 1]
            entries = slice(int(indptr[0]), int(indptr[-1]))
            of_rows = session_block(sessions, other, columns, motion, rows)
            blocks.append(Block(rows, entries, indptr - entries.start, of_rows))
        offset = parameters.mean + other.session_effect
        return EntryMoments(own, other, data, data.row, columns, offset, motion, sessions, tuple(blocks))

    def scores(self, at: Posterior) -> EntryScores:
        """The moments of the score of each entry under the posterior `at`."""
        layout, other, columns, motion = self.own.layout, self.other, self.columns, self.motion
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
        mean = entry_products(self.row, columns, motion.linear_powers, at.mean, other.features)
        mean += other.bias if columns is None else other.bias[columns]
        mean += self.offset
        own_variance = entry_products(self.row, columns, motion.powers, own_weights, other.direct)
        other_variance = entry_products(self.row, columns, motion.powers, second, other.covariance)
        other_variance += other.session_variance
        for block in self.blocks:
            block.sessions.add_to_scores(at.effects, mean, own_variance)
        return EntryScores(mean, own_variance, other_variance, self.offset)

    def prior(self) -> Posterior:
        """The posterior of rows of which nothing is known but the prior."""
        own, motion, rows = self.own, self.motion, self.data.rows
        prior = own.cold_start or own
        mean = np.broadcast_to(prior.mean, (rows, own.layout.dim))
        covariance = np.broadcast_to(pack(prior.covariance[None]), (rows, own.layout.packed))
        states = motion.states(mean)
        effects = SessionEffects.prior(self.sessions, own.session_variance, states.shape[1])
        return Posterior(states, motion.covariances(covariance), effects)
