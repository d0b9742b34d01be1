"""Items: what is known of one, their names and their rows.

Invariant: a row that has no name yet is in no answer.
"""

import msgspec
import numpy as np
import numpy.typing as npt
from aiohttp import web

from factors import BASIS, FactorsError, item_statistics
from featurestore.generations.activity import Positives
from featurestore.generations.live import LiveGeneration
from featurestore.item_registry import ItemRegistry
from service.catalogue.parsing import ItemShown
from service.context import CONTEXT
from service.http.parsing import Query, path_id
from service.http.problems import Problem
from service.http.response import json_answer
from service.openapi import STORE, Route, query_parameter, whole
from service.prediction_json import Prediction, rounded, shown
from service.rules.request import DEFAULT_N, MAX_N

# A list for people or for a re-ranking; more items cost the choosing and the encoding alike.
QUERY_N = query_parameter("n", whole(1, MAX_N, DEFAULT_N), "How many; else as the scenario says")


class Average(msgspec.Struct):
    """What an average user would give an item: with 90 % a rating from `low` to `high`, around `rating`. Each
    rating of the item narrows it.
    """

    rating: float
    low: float
    high: float


class ItemOut(ItemShown, omit_defaults=True, kw_only=True):
    """What the catalogue has of an item, and what the live generation knows of it. `expected`: from an
    unknown user; `distribution`: the probability of each step of the scale, lowest first. `average`: of an
    item that has ratings. `positives`: its positive events, where the generation has learned any of any item.
    """

    ratings: int
    mean: float | None
    expected: Prediction
    generation: int
    average: Average | None = None
    distribution: list[float] | None = None
    positives: int | None = None


async def item_names(registry: ItemRegistry, rows: npt.NDArray[np.integer]) -> list[str | None]:
    """Return the id of each of `rows`; None for a row that has none."""
    # The item table may be ahead of the registry: another replica has registered these.
    if len(rows) and int(rows.max()) >= len(registry):
        await registry.refresh()
        if int(rows.max()) >= len(registry):
            await registry.require_whole()
    known = len(registry)
    return [registry.id(row) if 0 <= row < known else None for row in rows.tolist()]


async def item_row(registry: ItemRegistry, item_id: bytes) -> int:
    """Return the row of an item; raises `unknown_item`."""
    # An item that another replica registered is not known here yet: `rows` asks the store for it.
    row = (await registry.rows([item_id]))[0]
    if row is None:
        raise Problem("unknown_item", "this item has no rating, and no history named it")
    return row


def expected(live: LiveGeneration, vectors: npt.NDArray[np.float32], user_index: int, row: int) -> Prediction:
    """Return the score of one pair; a negative index or row stands for an unknown user or item."""
    scores = live.scorer.score(vectors, np.array([user_index]), np.array([row]))
    scores = rounded(scores, live.model.scale)
    return Prediction(float(scores.rating[0]), float(scores.std[0]), BASIS[scores.basis[0]])


def _average(live: LiveGeneration, row: int) -> Average:
    low, rating, high = shown(live.ranker.average(np.array([row]))[0], live.model.scale)
    return Average(rating, low, high)


def _distribution(live: LiveGeneration, row: int) -> list[float]:
    """Return the probability of each step of the scale of a rating by an unknown user."""
    try:
        found = live.scorer.distribution(live.posterior.prior_user[None], np.array([-1]), np.array([row]))
    except FactorsError as exc:
        raise Problem("invalid_parameter", f"distribution: {exc}", field="distribution") from exc
    steps: list[float] = found[0].tolist()
    return steps


def statistics_of(live: LiveGeneration, rows: npt.NDArray[np.integer]) -> list[tuple[int, float | None]]:
    """Return count and mean of the ratings of each of `rows`; rows beyond the table have none."""
    # An item that was registered after the fit has a row in the table when it is folded in.
    inside = rows < live.n_items
    found = item_statistics(live.items[rows[inside]])
    known = iter(zip(found.count.tolist(), shown(found.mean, live.model.scale), strict=True))
    pairs = [next(known) if is_inside else (0, 0.0) for is_inside in inside.tolist()]
    return [(count, mean if count else None) for count, mean in pairs]


def positive_counts(positives: Positives | None, rows: npt.NDArray[np.integer]) -> list[int | None]:
    """Return how many positive events each of `rows` has, None where that is not known."""
    return [None] * len(rows) if positives is None else [*positives.counts_of(rows.astype(np.int64)).tolist()]


@Route(
    *("GET", "/items/{item_id}", "Users and items", ItemOut),
    ("invalid_parameter", "not_found", *STORE, "unknown_item", "no_generation"),
    needs="read",
    operation_id="getItem",
    parameters=(
        query_parameter(
            "distribution",
            {"type": "boolean", "default": False},
            "The probability of each step of the scale too, of a rating by an unknown user",
        ),
    ),
)
async def get_item(request: web.Request) -> web.StreamResponse:
    """What is known of an item."""
    context = request.app[CONTEXT]
    distributed = Query(request.raw_path).flag("distribution", default=False)
    item_id = path_id(request.rel_url.raw_path, 1, "item_id")
    live = context.live()
    (state,) = await context.store.catalogue.states([item_id])
    if state.deleted:
        raise Problem("unknown_item", "this item was deleted")
    registry = context.store.items(live.epoch)
    if state.data is None:
        item, row = ItemShown(item_id.decode()), await item_row(registry, item_id)
    else:
        item = ItemShown.of(context.store.catalogue.read(state.data))
        found = (await registry.rows([item_id]))[0]
        row = -1 if found is None else found
    count, mean = statistics_of(live, np.array([row]))[0] if row >= 0 else (0, None)
    score = expected(live, live.posterior.prior_user[None], -1, row)
    # One that the registry does not have is in no event.
    (positives,) = positive_counts(live.positives, np.array([row if row >= 0 else live.n_items]))
    known = msgspec.structs.asdict(item) | {"ratings": count, "mean": mean, "positives": positives}
    answer = ItemOut(**known, expected=score, generation=live.generation)
    if count:
        answer.average = _average(live, row)
    if distributed:
        answer.distribution = _distribution(live, row)
    return json_answer(answer)
