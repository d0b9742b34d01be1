"""The ratings that a fit learns from, by user and by item, and what is computed from them once.

Invariant: it never changes, so that all states of a fit share one.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from factors.inference.backend import HalfStepBackend, NumpyBackend
from factors.inference.histories import (
    NO_HISTORIES,
    RECENT,
    SAMPLED,
    Compressed,
    Sessions,
    group_sessions,
)
from factors.model.columns import Columns
from factors.model.context import ContextEncoding
from factors.model.parameters import SideName
from factors.model.types import Float64s, Int64s, Ratings
from factors.training.effects.attribute_effects import AttributeEffects, NoAttributeEffects
from factors.training.effects.implicit_effects import ImplicitEffects, NoImplicitEffects

# Entries that are looked at together.
_BLOCK = 1 << 20


def random_entries(n: int, most: int) -> Int64s:
    """Return `most` of the entries 0 to `n`, ascending, the same each time; all of them if there are no more.

    Every n-th entry would be of the same few items where each user has rated all of them.
    """
    if n <= most:
        return np.arange(n)
    return np.sort(np.random.default_rng(n).choice(n, most, replace=False, shuffle=False))


def _none(column: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return a column (n,) of unknown numbers in place of this one, which takes no memory."""
    unknown = np.nan if column.dtype.kind == "f" else 0
    return np.broadcast_to(column.dtype.type(unknown), column.shape)


def inserted(column: npt.NDArray[Any], places: Int64s, values: npt.NDArray[Any] | float) -> npt.NDArray[Any]:
    """Return a column (n,) with `values` (m,) before the entries at `places`; one of `_none` stays so."""
    if column.strides == (0,):
        return np.broadcast_to(column[0] if len(column) else column.dtype.type(0), len(column) + len(places))
    return np.insert(column, places, values)


def _with(data: Compressed, more: Compressed, places: Int64s) -> Compressed:
    """Return `data` and the entries `more`, which come before its own at `places`."""
    names = ("other", "value", "time", "source")
    columns = (inserted(getattr(data, name), places, getattr(more, name)) for name in names)
    context = None
    if data.context is not None and more.context is not None:
        context = np.insert(data.context, places, more.context, axis=0)
    other, value, time, source = columns
    return Compressed(data.indptr + more.indptr, other, value, time, source, context)


@dataclass(frozen=True, slots=True)
class TrainingSet:
    """The same ratings `by_user` and `by_item`, the `backend` that computes over them, the `attributes`
    of the rows of a side, where it has any, and how the contexts of the ratings are encoded, where they say
    anything.
    """

    by_user: Compressed
    by_item: Compressed
    backend: HalfStepBackend
    attributes: Mapping[SideName, Columns] = field(default_factory=dict)
    context: ContextEncoding | None = None
    # Sorting times and factorising Gram matrices take seconds on large sets: once for all states.
    _sessions: dict[tuple[SideName, float, float], Sessions] = field(init=False, default_factory=dict)
    _of_samples: dict[tuple[SideName, float, float, int], Int64s] = field(init=False, default_factory=dict)
    _implicit: dict[tuple[SideName, float], ImplicitEffects] = field(init=False, default_factory=dict)
    _regressions: dict[SideName, AttributeEffects] = field(init=False, default_factory=dict)
    _samples: dict[int, tuple[Int64s, Int64s]] = field(init=False, default_factory=dict)

    @staticmethod
    def of(
        by_user: Compressed,
        n_items: int,
        backend: HalfStepBackend | None = None,
        attributes: Mapping[SideName, Columns] | None = None,
        context: ContextEncoding | None = None,
        *,
        more: int = 0,
    ) -> "TrainingSet":
        """Return the training set of ratings by user, each pair once, to which at most `more` of a user are
        added later.
        """
        backend, by_user = backend or NumpyBackend(), by_user.narrow()
        if by_user.counts.max(initial=0) + more <= RECENT + SAMPLED:
            # Where the entries came from is asked of long histories alone.
            by_user = replace(by_user, source=_none(by_user.source))
        by_user, by_item = (
            replace(each, value=cast("Float64s", backend.values(each.value)))
            for each in (by_user, by_user.by_other(n_items, threads=backend.threads))
        )
        return TrainingSet(by_user, by_item, backend, attributes or {}, context)

    def by_user_alone(self) -> "TrainingSet":
        """Return the same without the ratings by item, and without what was computed from them."""
        return replace(self, by_item=NO_HISTORIES)

    def anew(self) -> "TrainingSet":
        """Return the same without what was computed from it."""
        return replace(self)

    def of_users(self, rows: Int64s) -> "TrainingSet":
        """Return the users at `rows` (m,), ascending, alone, without the ratings by item."""
        attributes = dict(self.attributes)
        if "user" in attributes:
            attributes["user"] = attributes["user"].take(rows)
        by_user = self.by_user.of_rows(rows)
        return replace(self, by_user=by_user, by_item=NO_HISTORIES, attributes=attributes)

    def without_times(self) -> "TrainingSet":
        """Return the same ratings, of unknown time: 16 bytes a rating less."""
        by_user, by_item = (replace(each, time=_none(each.time)) for each in (self.by_user, self.by_item))
        return replace(self, by_user=by_user, by_item=by_item)

    def with_ratings(self, by_user: Compressed) -> tuple["TrainingSet", dict[SideName, Int64s]]:
        """Return the same and these ratings of pairs that it does not have, without ordering all again; and
        before which entries of either side they have come.
        """
        by_item = by_user.by_other(self.by_item.rows)
        of_user = self.by_user.places(by_user.row, by_user.other)
        of_item = self.by_item.places(by_item.row, by_item.other)
        source = self.by_item.source.copy()
        for start in range(0, len(source), _BLOCK):
            # Entries of `by_user` move by how many have come before them.
            part = source[start : start + _BLOCK]
            part += np.searchsorted(of_user, part, side="right").astype(part.dtype)
        kept = replace(self.by_item, source=source)
        by_item = replace(by_item, source=(of_user + np.arange(len(of_user)))[by_item.source])
        both = (_with(self.by_user, by_user, of_user), _with(kept, by_item, of_item))
        found = TrainingSet(*both, self.backend, self.attributes, self.context)
        return found, {"user": of_user, "item": of_item}

    def __len__(self) -> int:
        return len(self.by_user.value)

    def side(self, name: SideName) -> Compressed:
        """Return the ratings by the rows of this side."""
        return self.by_user if name == "user" else self.by_item

    @property
    def sparse(self) -> bool:
        """Whether there are fewer ratings than biases: no prior can be learned from them, and nothing beyond
        biases (empirical Bayes would end with items that do not differ).
        """
        rated = np.count_nonzero(self.by_user.counts) + np.count_nonzero(self.by_item.counts)
        return len(self) <= int(rated)

    def ratings(self, entries: Int64s) -> Ratings:
        """Return the ratings at these `entries` of `by_user`."""
        by_user, rows = self.by_user, (self.by_user.row[entries], self.by_user.other[entries])
        context = None if by_user.context is None else by_user.context[entries]
        user_row, item_row = (each.astype(np.int32) for each in rows)
        return Ratings(user_row, item_row, by_user.value[entries], by_user.time[entries], context)

    def without(self, held_out: Int64s) -> "TrainingSet":
        """Return the same users and items without the ratings at these entries of `by_user`."""
        part = self.by_user.only(np.delete(np.arange(len(self)), held_out))
        return TrainingSet.of(part, self.by_item.rows, self.backend, self.attributes, self.context)

    def sample(self, most: int) -> tuple[Int64s, Int64s]:
        """Return at most `most` ratings, at random: their entries in `by_user` and in `by_item`."""
        if most not in self._samples:
            n = len(self)
            entries = random_entries(n, most)
            chosen = np.zeros(n, dtype=bool)
            chosen[entries] = True
            found = np.flatnonzero(chosen[self.by_item.source])
            item_entries = np.empty(len(entries), dtype=np.int64)
            item_entries[np.searchsorted(entries, self.by_item.source[found])] = found
            self._samples[most] = entries, item_entries
        return self._samples[most]

    def sessions(self, name: SideName, session_length: float, sitting_length: float = 0.0) -> Sessions:
        """Return the sessions of users or of items, and their sittings."""
        key = name, session_length, sitting_length
        if key not in self._sessions:
            self._sessions[key] = group_sessions(self.side(name), session_length, sitting_length)
        return self._sessions[key]

    def sessions_of_sample(
        self, name: SideName, session_length: float, sitting_length: float, most: int
    ) -> Int64s:
        """Return the session of each rating of `sample`, -1 where it has none."""
        key = name, session_length, sitting_length, most
        if key not in self._of_samples:
            sessions, entries = self.sessions(*key[:3]), self.sample(most)[0 if name == "user" else 1]
            found = np.full(len(entries), -1, dtype=np.int64)
            if len(sessions):
                place = np.full(len(self), -1, dtype=np.int32)
                place[entries] = np.arange(len(entries))
                place = place[sessions.entry]
                near = place >= 0
                found[place[near]] = sessions.group[near]
            self._of_samples[key] = found
        return self._of_samples[key]

    def implicit_effects(self, name: SideName, ridge: float) -> ImplicitEffects | NoImplicitEffects:
        """Return the regression on the rated sets of users or of items; a `ridge` of 0 stands for none."""
        if ridge <= 0:
            return NoImplicitEffects()
        key = name, ridge
        if key not in self._implicit:
            own, other = self.side(name), self.side("item" if name == "user" else "user")
            self._implicit[key] = ImplicitEffects(own, other, ridge, self.backend.rated_sets(own, other))
        return self._implicit[key]

    def attribute_effects(
        self, name: SideName, effects: Float64s | None
    ) -> AttributeEffects | NoAttributeEffects:
        """Return the regression on the attributes of users or of items; `effects` None stands for none."""
        if effects is None or name not in self.attributes:
            return NoAttributeEffects()
        if name not in self._regressions:
            rated = self.side(name).counts > 0
            self._regressions[name] = AttributeEffects(self.attributes[name], rated)
        return self._regressions[name]
