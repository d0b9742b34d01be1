"""Explains answers: each must follow from what its user had rated and from the rows of one generation.

Invariant: an answer is explained by the generation that it names if folding in what its user had rated, with
item rows that this generation has had, gives its rating. Else it was stale, or mixes generations.
"""

import itertools
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from factors import Float32s, Histories, Model, Scorer, posterior_of
from featurestore.errors import StoreError
from featurestore.generations.deltas import decode_deltas
from featurestore.store import Store

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
    histories = Histories(
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
