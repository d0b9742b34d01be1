"""What may be stored, as far as its clients can know: every answer of a read is held against that.

Invariant: a value that an unanswered call may have written stays possible until a later answer rules it out;
of a replicated store only a later write does, because a promoted replica may lack what a read found and no
answer promised. A call without an answer may still take effect for `LATE_S`; after that it has, or never
will.
"""

from collections import defaultdict
from dataclasses import dataclass, field

# So long a fault may hold up a call that its client has given up: a frozen worker, connections that are held.
LATE_S = 20.0

Value = float | None
"""A rating; None where there is none."""


@dataclass(slots=True)
class Cell:
    """What one user may have rated one item. `late`: of unanswered calls, and until when they may come."""

    settled: set[Value] = field(default_factory=lambda: {None})
    late: dict[Value, float] = field(default_factory=dict)

    def may_be(self, now: float) -> set[Value]:
        """Return every value that a read that begins `now` may find."""
        for value, until in list(self.late.items()):
            if until < now:
                del self.late[value]
                # It came, or it did not.
                self.settled.add(value)
        return self.settled | set(self.late)


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

    def rated(self, user: str, ratings: dict[str, Value], began: float, ended: float, *, known: bool) -> None:
        """Note what came of writes of a user (None: taken back). `known`: they were acknowledged."""
        for world in self.worlds:
            for item, value in ratings.items():
                cell = world.cells[user][item]
                if not known:
                    cell.late[value] = ended + LATE_S
                elif began > world.since:
                    cell.settled = {value}
                else:
                    # Perhaps before the store began to write to this history.
                    cell.settled.add(value)
                if value is not None and (not known or began > world.since):
                    world.writes[user].append(Write(value, began, ended if known else float("inf")))

    def forgetting(self, user: str) -> None:
        """Note that a user is about to be forgotten: from now on the archive may have lost all before."""
        for world in self.worlds:
            self._leaving[user] |= {write.value for write in world.writes.pop(user, [])}

    def forgot(self, user: str, began: float, ended: float, *, known: bool) -> None:
        """Note that a user was forgotten, or (not `known`) may have been."""
        for world in self.worlds:
            for cell in world.cells[user].values():
                if not known:
                    cell.late[None] = ended + LATE_S
                elif began > world.since:
                    cell.settled = {None}
                else:
                    cell.settled.add(None)
        leaving = self._leaving.pop(user, set())
        if known:
            self.gone[user] |= leaving

    def found(self, user: str, ratings: dict[str, float], began: float) -> list[str]:
        """Hold what a read found that began then against what may be; return what is wrong."""
        possible = [*self.worlds, *[world for world, ended in self._ended if ended > began]]
        wrong = [self._wrong(world, user, ratings, began) for world in possible]
        if all(wrong):
            return wrong[0]
        if len(possible) == 1 and not self._replicated:
            for item, cell in possible[0].cells[user].items():
                cell.settled = {ratings.get(item)}
        return []

    def surely_rated(self, user: str, began: float) -> set[str]:
        """Return the items that a user has rated for certain; none while histories change."""
        if len(self.worlds) > 1 or (self._ended and self._ended[-1][1] > began):
            return set()
        return {item for item, cell in self.live.cells[user].items() if None not in cell.may_be(began)}

    @staticmethod
    def _wrong(world: World, user: str, ratings: dict[str, float], began: float) -> list[str]:
        cells = world.cells[user]
        return [
            f"user {user}, item {item}: found {ratings.get(item)}, not of {sorted(map(str, may))}"
            for item in {*cells, *ratings}
            if ratings.get(item) not in (may := cells[item].may_be(began))
        ]
