"""What may be stored, as far as its clients can know: every answer of a read is held against that.

Invariant: a value that an unanswered call may have written stays possible until a later answer rules it out;
of a replicated store only a later write does, because a promoted replica may lack what a read found and no
answer promised. A call without an answer may still take effect for `LATE_S`; after that it has, or never
will.

A cell is such a register: a rating of a user for an item, or a field of a document.

What is predicted is held against it, too: an answer is explained by the generation that it names if folding
in what its user had rated, with item rows that this generation has had, gives its rating. Else it was stale,
or mixes generations.
"""

import itertools
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from factors import Float32s, Model, Scorer, posterior_of
from factors import Histories as ItemHistories
from featurestore.errors import StoreError
from featurestore.generations.deltas import decode_deltas
from featurestore.store import Store

# So long a fault may hold up a call that its client has given up: a frozen worker, connections that are held.
LATE_S = 20.0

Value = float | None
"""A rating; None where there is none."""


@dataclass(slots=True)
class Cell:
    """What one user may have rated one item, or what a field of a document may be; None where there is none.
    `late`: of unanswered calls, and until when they may come; `unsure`: values of which it is not known
    whether they came before or after the item is deleted; `leaving`: it is, with what came before; `left`:
    what was possible until that was done, and when.
    """

    settled: set[float | str | None] = field(default_factory=lambda: {None})
    late: dict[float | str | None, float] = field(default_factory=dict)
    unsure: set[float | str | None] = field(default_factory=set)
    leaving: bool = False
    left: tuple[set[float | str | None], float] = field(default_factory=lambda: (set(), float("-inf")))

    def wrote(self, value: float | str | None, ended: float, *, known: bool, alone: bool = True) -> None:
        """Note a write. `known`: it was acknowledged; `alone`: what was before is not any more."""
        if not known:
            self.late[value] = ended + LATE_S
            self.unsure.add(value)
        elif alone:
            self.settled = {value}
            self.unsure = set(self.late)
        else:
            self.settled.add(value)
            self.unsure.add(value)

    def may_be(self, now: float) -> set[float | str | None]:
        """Return every value that a read that begins `now` may find."""
        for value, until in list(self.late.items()):
            if until < now:
                del self.late[value]
                # It came, or it did not.
                self.settled.add(value)
        # A read that began before may be answered after.
        before = self.left[0] if now < self.left[1] else set()
        return self.settled | before | set(self.late) | ({None} if self.leaving else set())

    def found(self, value: float | str | None, began: float) -> None:
        """Note what a read found that began then."""
        if began >= self.left[1]:
            self.settled = {value}


@dataclass(frozen=True, slots=True)
class Write:
    """A write of a rating that was acknowledged, or (`ended` infinite) may have happened."""

    value: float
    began: float
    ended: float

    @property
    def known(self) -> bool:
        """Whether it was acknowledged."""
        return self.ended < float("inf")


@dataclass(slots=True)
class World:
    """A history (epoch). `since`: when the store began to write to it; infinite while it does not."""

    since: float
    cells: dict[str, dict[str, Cell]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(Cell)))
    # Acknowledged and since `since`, by user; what a user has rated since he was forgotten last.
    writes: dict[str, list[Write]] = field(default_factory=lambda: defaultdict(list))


@dataclass(slots=True)
class Deletion:
    """An item that is deleted with its ratings in a history. `until`: what began later came after it,
    infinite before there is an answer; `receipt`: None where the call had none.
    """

    item: str
    world: World
    until: float = float("inf")
    receipt: str | None = None
    is_open: bool = True


class Histories:
    """What is known of all histories. `worlds`: the live one, and behind it one that is being prepared."""

    def __init__(self, *, replicated: bool = False) -> None:
        self._replicated = replicated
        self.worlds = [World(float("-inf"))]
        self._ended: list[tuple[World, float]] = []
        self._leaving: dict[str, set[float]] = defaultdict(set)
        # By user: values that were acknowledged before the user was forgotten.
        self.gone: dict[str, set[float]] = defaultdict(set)
        # While a new history may still begin, though none is seen: by the loop's clock.
        self.undecided_until = 0.0
        # The last of each item: one after the other.
        self.deletions: dict[str, Deletion] = {}
        # All that was ever sent.
        self.sent: dict[str, set[float]] = defaultdict(set)

    @property
    def live(self) -> World:
        """The history that answers."""
        return self.worlds[0]

    def begin(self) -> None:
        """A call is about to begin a new history."""
        self.worlds.append(World(float("inf")))
        self.undecided_until = float("inf")

    def begun(self, ended: float, *, refused: bool) -> None:
        """That call has ended. `refused`: before it began anything."""
        self.undecided_until = 0.0 if refused else ended + LATE_S

    def switched(self, now: float) -> None:
        """All that is written from now on goes to the new history, too."""
        if len(self.worlds) > 1:
            self.worlds[1].since = min(self.worlds[1].since, now)

    def decide(self, now: float, *, replaced: bool) -> None:
        """The new history is live alone, or was given up."""
        gone = self.worlds.pop(0 if replaced else 1)
        if replaced:
            self._ended.append((gone, now))
        for deletion in self.deletions.values():
            deletion.is_open &= deletion.world is not gone

    def rated(self, user: str, ratings: dict[str, Value], began: float, ended: float, *, known: bool) -> None:
        """Note what came of writes of a user (None: taken back). `known`: they were acknowledged."""
        for world in self.worlds:
            for item, value in ratings.items():
                # Else perhaps before the store began to write to this history.
                alone = began > world.since
                cell = world.cells[user][item]
                cell.wrote(value, ended, known=known, alone=alone)
                deletion = self.deletions.get(item)
                if deletion is not None and deletion.world is world:
                    _beside(deletion, cell, value, began, alone=known and alone)
                if value is not None and (not known or began > world.since):
                    world.writes[user].append(Write(value, began, ended if known else float("inf")))

    def forgetting(self, user: str) -> None:
        """Note that a user is about to be forgotten: from now on the archive may have lost all before. What
        has no answer may come after it.
        """
        for world in self.worlds:
            self._leaving[user] |= {write.value for write in world.writes.pop(user, []) if write.known}

    def forgot(self, user: str, began: float, ended: float, *, known: bool) -> None:
        """Note that a user was forgotten, or (not `known`) may have been."""
        for world in self.worlds:
            for cell in world.cells[user].values():
                cell.wrote(None, ended, known=known, alone=began > world.since)
        leaving = self._leaving.pop(user, set())
        if known:
            self.gone[user] |= leaving

    @property
    def deletion(self) -> Deletion | None:
        """The item that is being deleted with its ratings."""
        return next((each for each in self.deletions.values() if each.is_open), None)

    def deleting(self, item: str) -> None:
        """Note that an item is about to be deleted with its ratings."""
        self.deletions[item] = Deletion(item, self.live)
        for cells in self.live.cells.values():
            if item in cells:
                cells[item].leaving, cells[item].unsure = True, set(cells[item].late)

    def deleted(self, item: str, ended: float, receipt: str | None, *, refused: bool) -> None:
        """That call has ended. `refused`: before it did anything."""
        deletion = self.deletions[item]
        deletion.receipt, deletion.until = receipt, ended if receipt else ended + LATE_S
        if refused:
            deletion.until = float("-inf")
            self.taken_back(ended, known=None)

    def taken_back(self, now: float, *, known: bool | None) -> int:
        """The ratings of the item are gone by `now`; not `known`: or none is; None: none is. Return of how
        many it is known that there may have been one.
        """
        deletion, count = self.deletion, 0
        for cells in () if deletion is None else deletion.world.cells.values():
            if deletion is not None and deletion.item in cells and (cell := cells[deletion.item]).leaving:
                cell.leaving, count = False, count + 1
                if known is not None:
                    cell.left = set(cell.settled), now
                    cell.settled = {None} | (cell.settled & cell.unsure if known else cell.settled)
        if deletion is not None:
            deletion.is_open = False
        return count

    def found(self, user: str, ratings: dict[str, float], began: float) -> list[str]:
        """Hold what a read found that began then against what may be; return what is wrong."""
        possible = [*self.worlds, *[world for world, ended in self._ended if ended > began]]
        wrong = [_wrong(f"user {user}, item", world.cells[user], ratings, began) for world in possible]
        if all(wrong):
            return wrong[0]
        if len(possible) == 1 and not self._replicated:
            for item, cell in possible[0].cells[user].items():
                cell.found(ratings.get(item), began)
        return []

    def surely_rated(self, user: str, began: float) -> set[str]:
        """Return the items that a user has rated for certain; none while histories change."""
        if len(self.worlds) > 1 or (self._ended and self._ended[-1][1] > began):
            return set()
        return {item for item, cell in self.live.cells[user].items() if None not in cell.may_be(began)}


def _beside(deletion: Deletion, cell: Cell, value: Value, began: float, *, alone: bool) -> None:
    """Note a write of a rating of an item that was deleted before the write had ended."""
    if began >= deletion.until:
        cell.leaving &= not alone
    elif deletion.is_open:
        # Before it or after it.
        cell.leaving = True
        cell.unsure.add(value)
    else:
        cell.settled.add(None)


def _wrong(
    where: str, cells: dict[str, Cell], found: Mapping[str, float | str | None], began: float
) -> list[str]:
    return [
        f"{where} {name}: found {found.get(name)}, not of {sorted(map(str, may))}"
        for name in {*cells, *found}
        if found.get(name) not in (may := cells[name].may_be(began))
    ]


class Documents:
    """What is known of documents by their paths, outside of all histories. One writer each: its calls follow
    each other. `fields`: each is a register; `gone`: paths whose last write is a deletion that was
    acknowledged.
    """

    def __init__(self, *, replicated: bool = False) -> None:
        self.fields: dict[str, dict[str, Cell]] = defaultdict(lambda: defaultdict(Cell))
        self.gone = set[str]()
        self._replicated = replicated
        # When the last write had ended; infinite amid one.
        self._written: dict[str, float] = {}

    def writing(self, path: str) -> None:
        """A call is about to write a document."""
        self._written[path] = float("inf")

    def written(self, path: str, ended: float) -> None:
        """That call has ended, whatever came of it."""
        self._written[path] = ended

    def wrote(self, path: str, fields: Mapping[str, str | None], ended: float, *, known: bool) -> None:
        """Note what came of a write (None: without the field). `known`: it was acknowledged."""
        self.gone.discard(path)
        for name, value in fields.items():
            self.fields[path][name].wrote(value, ended, known=known)

    def deleted(self, path: str, ended: float, *, known: bool) -> None:
        """Note that a document was deleted, or (not `known`) may have been."""
        self.wrote(path, dict.fromkeys(self.fields[path]), ended, known=known)
        if known:
            self.gone.add(path)

    def found(self, path: str, fields: Mapping[str, str | None], began: float) -> list[str]:
        """Hold what a read of its writer found against what may be; return what is wrong. Fields that were
        never written are not looked at.
        """
        cells = self.fields[path]
        fields = {name: fields.get(name) for name in cells}
        wrong = _wrong(f"{path},", cells, fields, began)
        if not wrong and not self._replicated:
            for name, cell in cells.items():
                cell.settled = {fields[name]}
        return wrong

    def surely(self, path: str, began: float) -> dict[str, float | str | None]:
        """Return the fields that a call that began then must find so, as no write has ended since."""
        if self._written.get(path, float("inf")) > began:
            return {}
        may = {name: cell.may_be(began) for name, cell in self.fields[path].items()}
        return {name: value for name, values in may.items() if len(values) == 1 for value in values}


Verdict = Literal["explained", "stale", "mixed"]

# Records are float32; the fold-in of the check adds in another order.
TOLERANCE = 2e-4
# Folding in so many users takes half a second.
MOST_CHOICES = 100_000


@dataclass(frozen=True, slots=True)
class Answered:
    """One answer: what its user had rated by then (item, rating, time), what was asked, what came, when."""

    rated: tuple[tuple[int, float, float], ...]
    item: int
    rating: float
    generation: int
    at: float = 0.0


@dataclass(slots=True)
class Seen:
    """A generation as seen in the store: its model, and every value that a row of its table has had."""

    epoch: int
    model: Model
    base: Float32s
    versions: dict[int, list[Float32s]] = field(default_factory=lambda: defaultdict(list))
    after: str = "0"

    def of(self, row: int) -> list[Float32s]:
        """Return the values that a row has had."""
        # A row that came after the fit has its deltas alone.
        return [*self.base[row : row + 1], *self.versions[row]]


async def observe(store: Store, seen: dict[int, Seen]) -> None:
    """Read what is new of every generation. Raises `StoreError`."""
    for summary in await store.generations.list():
        if summary.state != "ready":
            continue
        try:
            if summary.generation not in seen:
                meta = await store.generations.meta(summary.epoch, summary.generation)
                table = b"".join([chunk async for chunk in store.generations.load_items(meta)])
                base = np.frombuffer(table, np.float32).reshape(-1, meta.model.item_width)
                seen[summary.generation] = Seen(summary.epoch, meta.model, base)
            known = seen[summary.generation]
            name = store.keys.deltas(summary.epoch, summary.generation)
            entries: Any = await store.redis.xrange(name, f"({known.after}")
        except StoreError:  # removed between the list and the reading
            continue
        # One by one: of several together only the last value of a row would be seen, and answers may rest on
        # those between.
        for entry in entries:
            deltas = decode_deltas([entry], known.model.item_width, known.after, name)
            known.after = deltas.after
            for row, vector in zip(deltas.rows.tolist(), deltas.vectors, strict=True):
                known.versions[row].append(vector)


def judge(known: Seen, answer: Answered, rows: list[int]) -> Verdict | None:
    """Explain an answer, given the row of each item number; None where there is too much to try."""
    if explained(known, answer, answer.rated, rows) is not False:
        return None if _choices(known, answer.rated, rows) > MOST_CHOICES else "explained"
    # Without its newest rating it would be one that came too late to be counted.
    stale = any([explained(known, answer, answer.rated[:count], rows) for count in range(len(answer.rated))])
    return "stale" if stale else "mixed"


def _choices(known: Seen, rated: tuple[tuple[int, float, float], ...], rows: list[int]) -> int:
    return int(np.prod([len(known.of(rows[item])) for item, _, _ in rated]))


def explained(
    known: Seen, answer: Answered, rated: tuple[tuple[int, float, float], ...], rows: list[int]
) -> bool:
    """Return whether some state of the generation's table explains the answer to a user who had rated
    `rated`; true where there are too many states to try.
    """
    if _choices(known, rated, rows) > MOST_CHOICES:
        return True
    values = [known.of(rows[item]) for item, _, _ in rated]
    asked = known.of(rows[answer.item])
    choices = list(itertools.product(*values))
    # A table of its own with each value that any of the rows has had, for all the choices in one call.
    flat = [*asked, *itertools.chain.from_iterable(choices)]
    table = np.stack(flat)
    histories = ItemHistories(
        np.arange(len(choices) + 1, dtype=np.int64) * len(rated),
        np.arange(len(asked), len(flat), dtype=np.int32),
        np.tile(np.array([r for _, r, _ in rated], dtype=np.float64), len(choices)),
        np.tile(np.array([t for _, _, t in rated], dtype=np.float64), len(choices)),
    )
    # Whether the fit of that generation knew this user already is not seen from here.
    posterior = posterior_of(known.model)
    newcomers = np.repeat(posterior.prior_user[None], len(choices), axis=0)
    index = np.repeat(np.arange(len(choices)), len(asked)), np.tile(np.arange(len(asked)), len(choices))
    scorer = Scorer(posterior, table)
    found = [
        scorer.score(posterior.fold_in_users(table, histories, current=current), *index).rating
        for current in (None, newcomers)
    ]
    pairs = len(choices) * len(asked)
    return pairs > 0 and bool(np.min(np.abs(np.concatenate(found) - answer.rating)) < TOLERANCE)
