"""Effects of the sessions of a row (the days of a user), marginalised out of its posterior, then read back.

Invariant: posterior and effects are those of the joint Gaussian; nothing is iterated.

With `a = sum w f`, `n = sum w + 1 / t`, `s = sum w (y - b)` over the entries of one session, `t` the prior
variance of an effect, the precision of the row loses `a a^T / n` and its linear term `a s / n` (a Schur
complement); afterwards the effect has mean `(s - a . x) / n` and variance `1 / n + a^T S a / n^2`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from factors.inference.histories import Sessions
from factors.inference.motion import Motion
from factors.inference.ordinal import Sites
from factors.inference.segments import segment_sums
from factors.inference.side_moments import SideMoments
from factors.inference.sittings import Sittings
from factors.model.layout import COUNT, NO_SESSION, REST_KEY, outer, sitting_keys, unpack
from factors.model.parameters import Side
from factors.model.types import Float64s, Int64s


@dataclass(frozen=True, slots=True)
class SessionEffects:
    """Of each session its effect's `mean` and `variance` (G,), and its `covariance` (G, D) with the state of
    the row; `own_mean`, `own_variance` (G,): of what it is beyond that of its sitting.
    """

    mean: Float64s
    variance: Float64s
    covariance: Float64s
    own_mean: Float64s
    own_variance: Float64s

    @staticmethod
    def prior(sessions: Sessions, variance: float, width: int) -> "SessionEffects":
        """Return effects of which nothing is known but their prior `variance`, of rows whose state has
        `width`."""
        n = len(sessions)
        return SessionEffects(
            np.zeros(n), np.full(n, variance), np.zeros((n, width)), np.zeros(n), np.zeros(n)
        )

    @staticmethod
    def joined(parts: Sequence["SessionEffects"]) -> "SessionEffects":
        """Return the effects of several blocks, one after the other."""
        return SessionEffects(
            np.concatenate([part.mean for part in parts]),
            np.concatenate([part.variance for part in parts]),
            np.concatenate([part.covariance for part in parts]),
            np.concatenate([part.own_mean for part in parts]),
            np.concatenate([part.own_variance for part in parts]),
        )


NO_EFFECTS = SessionEffects(np.zeros(0), np.zeros(0), np.zeros((0, 0)), np.zeros(0), np.zeros(0))


# Its methods are empty, so that no step of a half-step tests for sessions.
class NoSessionBlock:
    """A block of rows without sessions: it changes no posterior."""

    def add_to_scores(self, effects: SessionEffects, mean: Float64s, variance: Float64s) -> None:
        """See `SessionBlock`."""

    def sums(self, own: Side, sites: Sites) -> "NoSessionBlock":
        """See `SessionBlock`."""
        _ = own, sites
        return self

    def take_from(self, precision: Float64s, linear: Float64s) -> None:
        """See `SessionSums`."""

    def effects(self, mean: Float64s, covariance: Float64s) -> SessionEffects:
        """See `SessionSums`."""
        _ = mean, covariance
        return NO_EFFECTS

    def take_from_terms(self, terms: Float64s, surprise: Float64s) -> None:
        """See `SessionSums`."""


@dataclass(frozen=True, slots=True)
class SessionBlock:
    """The sessions of one block of rows: `row` (g,) within the block; row `j` has the sessions `of_row[j]` to
    `of_row[j + 1]`; `sitting` as in `Sessions`. Session `k` has the entries `entry[indptr[k]:indptr[k + 1]]`,
    which multiply the state of their row with `features` (len(entry), D) and whose other rows have `bias`
    (len(entry),); `session`: of each entry, among all.
    """

    row: Int64s
    of_row: Int64s
    entry: Int64s
    session: Int64s
    indptr: Int64s
    features: Float64s
    bias: Float64s
    sitting: Int64s

    def add_to_scores(self, effects: SessionEffects, mean: Float64s, variance: Float64s) -> None:
        """Add to `mean` and `variance` (n,) of the scores of all entries those of the effects."""
        entry, session = self.entry, self.session
        mean[entry] += effects.mean[session]
        # The effect and the state of the row go together: twice their covariance.
        covariance = np.einsum("nd,nd->n", self.features, effects.covariance[session])
        covariance *= 2.0
        covariance += effects.variance[session]
        variance[entry] += covariance

    def sums(self, own: Side, sites: Sites) -> "SessionSums":
        """Return the sums of `sites` over these sessions."""
        weight, n = sites.weight[self.entry], len(self.row)
        group = np.repeat(np.arange(n), np.diff(self.indptr))
        load = segment_sums(self.indptr, None, weight, self.features)
        scale: Float64s = np.bincount(group, weight, n).astype(np.float64)
        scale += 1.0 / own.session_variance
        surprise = sites.linear[self.entry] - weight * self.bias
        total: Float64s = np.bincount(group, surprise, n).astype(np.float64)
        sittings = None
        if len(self.sitting):
            sittings = Sittings.of(own, self.sitting)
            sittings.add_sums(load, scale, total)
        # `a / n` is wanted four times: by precision, linear term, effects and explanations.
        return SessionSums(self, load, scale, total, load / scale[:, None], sittings)


def session_block(
    sessions: Sessions, other: SideMoments, motion: Motion, rows: slice
) -> SessionBlock | NoSessionBlock:
    """Return the sessions of these `rows`."""
    if len(sessions) == 0:
        return NoSessionBlock()
    # Sessions are in the order of their rows, and entries in that of their sessions: a block has one piece of
    # each.
    first, last = np.searchsorted(sessions.row, [rows.start, rows.stop]).tolist()
    if first == last:
        return NoSessionBlock()
    low, high = np.searchsorted(sessions.group, [first, last]).tolist()
    entry, row = sessions.entry[low:high], sessions.row[first:last] - rows.start
    where, session = other.rows_of(entry), sessions.group[low:high]
    indptr = np.searchsorted(session, np.arange(first, last + 1))
    of_row = np.searchsorted(row, np.arange(rows.stop - rows.start + 1))
    features = motion.features(other.features[where], entry)
    sitting = sessions.sitting[first:last]
    sitting = np.where(sitting >= 0, sitting - first, -1)
    return SessionBlock(row, of_row, entry, session, indptr, features, other.bias[where], sitting)


@dataclass(frozen=True, slots=True)
class SessionSums:
    """`load` (g, D), `scale`, `sum` (g,) of the sessions of a `block`: `a`, `n`, `s` of the module's
    docstring; `shift`: `a / n`.
    """

    block: SessionBlock
    load: Float64s
    scale: Float64s
    sum: Float64s
    shift: Float64s
    sittings: Sittings | None

    def take_from(self, precision: Float64s, linear: Float64s) -> None:
        """Take what the effects account for from the normal equations: `precision` (b, D, D), `linear` (b,
        D).
        """
        of_row = self.block.of_row
        if len(of_row) == 2:
            # A fold-in of one row: a product of matrices takes 3 us in place of 14 (12 sessions, rank 8).
            precision -= np.matmul(self.shift.T, self.load)[None]
        else:
            packed = segment_sums(of_row, None, 1.0 / self.scale, outer(self.load))
            precision -= unpack(packed, self.load.shape[1])
        linear -= segment_sums(of_row, None, self.sum, self.shift)

    def effects(self, mean: Float64s, covariance: Float64s) -> SessionEffects:
        """Return the effects, from the posteriors of the rows: `mean` (b, D), `covariance` (b, D, D)."""
        row, shift = self.block.row, self.shift
        if len(mean) == 1:
            effect = self.sum - self.load @ mean[0]
            shared = shift @ covariance[0]
        else:
            effect = self.sum - np.einsum("gd,gd->g", self.load, mean[row])
            shared = np.einsum("gij,gj->gi", covariance[row], shift)
        effect /= self.scale
        variance = 1.0 / self.scale + np.einsum("gd,gd->g", shift, shared)
        # What the state explains of a rating the effect does not: their covariance is -S a / n.
        np.negative(shared, out=shared)
        if self.sittings is None:
            return SessionEffects(effect, variance, shared, effect, variance)
        own = self.sittings.add_effects(self.load, self.scale, effect, variance, shared)
        return SessionEffects(effect, variance, shared, *own)

    def take_from_terms(self, terms: Float64s, surprise: Float64s) -> None:
        """Take what the effects account for from the linear `terms` (n, D) of the entries of one row, whose
        sites exceed the prior mean by `surprise` (n,).
        """
        entry = self.block.entry
        shift = self.shift if self.sittings is None else self.sittings.shifts(self.shift, self.scale)
        terms[entry] -= shift[self.block.session] * surprise[entry][:, None]


def write_slots(
    own: Side, rows: Float64s, sessions: Sessions, effects: SessionEffects, *, keep: float = math.nan
) -> None:
    """Write the sessions that matter most to the slots of each row of `rows`, the latest, that of key `keep`
    and its sitting among them.
    """
    layout, row = own.layout, sessions.row
    last = np.searchsorted(row, row, side="right") - 1
    # The latest session of a row always has a slot; the others by the size of their effect.
    always = (last == np.arange(len(row))) | (sessions.key == keep)
    if own.sitting_length:
        always |= sessions.key == sitting_keys(np.array([keep]), own.sessions_a_sitting)
    matter = np.where(always, np.inf, matters(sessions, effects.mean))
    order = np.lexsort((-matter, row))
    slot = np.empty(len(order), dtype=np.int64)
    slot[order] = np.arange(len(order)) - np.searchsorted(row, row)[order]
    kept = slot < layout.slots
    where = row[kept], slot[kept]
    rows[:, layout.keys][where] = sessions.key[kept]
    rows[:, layout.effects][where] = effects.mean[kept]
    rows[:, layout.variances][where] = effects.variance[kept]
    move_to_any_time(own, rows, sessions, effects.mean)


def move_to_any_time(own: Side, rows: Float64s, sessions: Sessions, effect: Float64s) -> None:
    """Move the share `own.any_time` of the average session effect of each of `rows` to its bias, from the
    `effect` (G,) of all `sessions`: a question without a time is most likely of a session that the row has.
    The last slot then says what other sessions lack.
    """
    if not own.any_time:
        return
    layout, n = own.layout, len(rows)
    entries = np.bincount(sessions.group, minlength=len(sessions))
    total = np.bincount(sessions.row, entries * effect, n)
    average = own.any_time * total / np.maximum(rows[:, COUNT], 1.0)
    rows[:, layout.mean.stop - 1] += average
    rows[:, layout.effects] -= average[:, None] * (rows[:, layout.keys] != NO_SESSION)
    last = np.unique(sessions.row), layout.slots - 1
    rows[:, layout.keys][last] = REST_KEY
    rows[:, layout.effects][last] = -average[last[0]]
    rows[:, layout.variances][last] = own.effect_variance


def move_back(own: Side, rows: Float64s) -> None:
    """Undo `move_to_any_time` in `rows`, which keep no other session after it."""
    layout = own.layout
    if not own.any_time:
        return
    moved = np.where(rows[:, layout.keys.stop - 1] == REST_KEY, -rows[:, layout.effects.stop - 1], 0.0)
    rows[:, layout.mean.stop - 1] -= moved
    rows[:, layout.effects] += moved[:, None] * (rows[:, layout.keys] != NO_SESSION)
    last = np.flatnonzero(rows[:, layout.keys.stop - 1] == REST_KEY)
    rows[last, layout.keys.stop - 1] = NO_SESSION


def share_of_known(sessions: Sessions) -> float:
    """Return for what share of the ratings a row has another one of the same session, or of its sitting:
    about as likely is a rating of unknown time to be of a known session (Good and Turing).
    """
    session = sessions.group if len(sessions.sitting) == 0 else sessions.sitting[sessions.group]
    if len(session) == 0:
        return 0.0
    return float(np.mean(np.bincount(session)[session] > 1))


def matters(sessions: Sessions, effect: Float64s) -> Float64s:
    """Return how far each session is from what is known without it: from its sitting, if it has one, (G,)."""
    apart = effect.copy()
    if len(sessions.sitting):
        (inner,) = np.nonzero(sessions.sitting >= 0)
        apart[inner] -= effect[sessions.sitting[inner]]
    return np.abs(apart)
