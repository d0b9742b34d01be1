"""What does it cost, and bring, to show items of which little is known?

Invariant: the worlds, their first events and what a user would choose are the same for every way of making
lists; lists are made by the very function that answers `GET /recommend`. In each made world items are added
in every round, users are shown a few that they have not seen and choose some of them, and the head is fitted
again. Regret: how much less of what was shown is chosen than of the best unseen items, on average.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from benchmarks.harness.command import Options, read
from evaluation.report import new_console, new_table
from factors import (
    BlendedRanker,
    Bools,
    Choices,
    FitSettings,
    Float64s,
    Histories,
    Int32s,
    Int64s,
    RankingHead,
    Scale,
    Scorer,
    TypeWeight,
    event_sums,
    fit_ranking,
    posterior_of,
    prior_model,
)
from processes.settings import setting, whole

NAME = "exploring"
CHOSEN, SHOWN = 1, 7
TYPES = (TypeWeight(CHOSEN, "positive", None, decisive=True), TypeWeight(SHOWN, "shown"))
# Tastes have so many dimensions; items to begin with, and of these seen by each user before the first round.
DIMENSIONS, FIRST, SEEN = 6, 300, 40
USERS, NEW, SLOTS = 300, 8, 5
PART = 5  # rounds at the beginning, and at the end, that have a column


@dataclass(frozen=True, slots=True)
class ExploringOptions(Options):
    """How much is played."""

    worlds: int = setting(3, "made worlds, of which the mean is taken", whole(1, 100))
    turns: int = setting(25, "rounds of each", whole(2 * PART, 1000))


@dataclass(slots=True)
class World:
    """`chance` float64 (u, n): with which each user chooses each item that is shown; `fate` (u, n): by which
    number below that it is decided. `events` (m, 3): user, item and type; `seen` (u, n).
    """

    chance: Float64s
    fate: Float64s
    seen: Bools
    events: list[Int64s] = field(default_factory=list)

    @classmethod
    def draw(cls, n_items: int, seed: int) -> "World":
        """Draw one in which each user has seen some of the first items."""
        rng = np.random.default_rng(seed)
        tastes, items = rng.normal(size=(USERS, DIMENSIONS)), rng.normal(size=(n_items, DIMENSIONS))
        quality = rng.normal(0.0, 0.7, n_items)
        logit = quality - 3.0 + 1.5 * tastes @ items.T / np.sqrt(DIMENSIONS)
        shape = USERS, n_items
        world = cls(1.0 / (1.0 + np.exp(-logit)), rng.random(shape), np.zeros(shape, np.bool_))
        for user in range(USERS):
            world.show(user, rng.choice(FIRST, SEEN, replace=False))
        return world

    def show(self, user: int, items: Int64s) -> None:
        """Have a user choose among `items`, which all have been shown then."""
        chosen = self.fate[user, items] < self.chance[user, items]
        codes = np.where(chosen, CHOSEN, SHOWN)
        self.events.append(np.column_stack([np.full(len(items), user), items, codes]))
        self.seen[user, items] = True

    def choices(self) -> Choices:
        """Return all events, by user."""
        table = np.concatenate(self.events)
        user, item, code = table[np.argsort(table[:, 0], kind="stable")].T
        columns = user.astype(np.int32), item.astype(np.int32), np.ones(len(user)), np.full(len(user), np.nan)
        return Choices(*columns, code.astype(np.uint8))


Ask = Callable[[int, int], np.random.Generator | None]
"""What makes the list of a user in a round: nothing, or a draw."""


def none(_turn: int, _user: int) -> None:
    """`explore=none`."""


def thompson(turn: int, user: int) -> np.random.Generator:
    """`explore=thompson`, with a seed for each list."""
    return np.random.default_rng([turn, user])


def play(world: World, turns: int, ask: Ask) -> tuple[Float64s, Float64s]:
    """Return the regret of each round, and which part of what was shown were new items (turns,)."""
    head: RankingHead | None = None
    regret, new = np.zeros(turns), np.zeros(turns)
    posterior = posterior_of(prior_model(FitSettings(Scale(1, 5))))
    for turn in range(turns):
        n_items, choices = FIRST + NEW * (turn + 1), world.choices()
        rng = np.random.default_rng(turn)
        shape = USERS, n_items
        head = fit_ranking(choices.ratings(), *shape, rng=rng, start=head, choices=choices, types=TYPES).head
        items = np.repeat(posterior.prior_item[None], n_items, axis=0)
        ranker, scorer = BlendedRanker(head, posterior), Scorer(posterior, items)
        histories = _by(choices.user_row, choices.item_row, choices, USERS)
        events = _item_events(choices, head)
        vectors = np.repeat(posterior.prior_user[None], USERS, axis=0)
        shown = list[Int64s]()
        for user in range(USERS):
            own = vectors[user : user + 1], histories.part(user, user + 1), SLOTS
            exclude = [np.flatnonzero(world.seen[user, :n_items])]
            found = ranker.top(scorer, *own, exclude, rng=ask(turn, user), events=events)[0]
            unseen = world.chance[user, :n_items][~world.seen[user, :n_items]]
            best = float(np.sort(unseen)[-SLOTS:].sum())
            regret[turn] += best - float(world.chance[user, found.item_rows].sum())
            shown.append(found.item_rows)
        for user, rows in enumerate(shown):
            world.show(user, rows)
        new[turn] = float((np.concatenate(shown) >= FIRST).mean())
    return regret / (USERS * SLOTS), new


def _by(row: Int32s, other: Int32s, choices: Choices, n_rows: int) -> Histories:
    order = np.argsort(row, kind="stable")
    offsets = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=n_rows))])
    columns = other[order], choices.value[order], choices.time[order], choices.type_code[order]
    return Histories(offsets, *columns)


def _item_events(choices: Choices, head: RankingHead) -> Float64s:
    """Return how many events each item has, as a trainer counts them."""
    by_item = _by(choices.item_row, choices.user_row, choices, len(head.items))
    return np.asarray(event_sums(by_item, TYPES)[:, 1:].sum(axis=1), np.float64)


def main(argv: Sequence[str]) -> int:
    """Print a line for each way of making lists; return 0, or 1 where exploring is no better at the end."""
    options, console = read(ExploringOptions, NAME, __doc__, argv), new_console()
    headings = ("explore", "regret", f"first {PART} rounds", f"last {PART}", "new items shown")
    title = f"{USERS} users, lists of {SLOTS}, {FIRST} items and {NEW} more in each of {options.turns} rounds"
    table, last = new_table(title, headings, left=headings[:1]), list[float]()
    for ask in (none, thompson):
        played = []
        for number in range(options.worlds):
            world = World.draw(FIRST + NEW * options.turns, options.seed + number)
            played.append(play(world, options.turns, ask))
        regret, new = np.mean(played, axis=0)
        last.append(float(regret[-PART:].mean()))
        means = regret.mean(), regret[:PART].mean(), last[-1], new.mean()
        table.add_row(ask.__name__, *(f"{mean:.4f}" for mean in means))
    console.print(table)
    return 0 if last[1] < last[0] else 1
