"""What a list says of its items beside their scores: what the catalogue has of them, and why they are in it.

Invariant: a list with all that it `include`s takes one look at the catalogue, however many items it has.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import msgspec
import numpy as np

from factors import Float64s, Histories, Int32s, Int64s, contributions
from featurestore.codecs import History, pack_feedback, pack_histories
from featurestore.errors import StoreUnavailable
from featurestore.generations.live import LiveGeneration
from service.catalogue.parsing import shown_values
from service.context import ServiceContext
from service.http.problems import Problem
from service.prediction_json import shown
from service.routes.items import item_names
from service.rules.request import ATTRIBUTE_OF

# More reasons are a report, not what stands under a title.
REASONS_OF_ITEM = 2


class Described(msgspec.Struct, kw_only=True, omit_defaults=True):
    """An item of a list, with what `include` names of it in the catalogue."""

    title: str | None = None
    image: str | None = None
    categories: list[str] | None = None
    attributes: dict[str, Any] | None = None


class Reason(Described, kw_only=True):
    """An item that the user chose or rated, and by how much that moved what ranks another."""

    item_id: str
    contribution: float


async def describe(
    context: ServiceContext, include: Sequence[str], items: Sequence[tuple[str, Described]]
) -> bool:
    """Write what `include` names into `items`, each with its id; return False where the store is away, so
    that nothing is known of them now.
    """
    parts = [name for name in include if name != "reasons"]
    if not parts or not items:
        return True
    catalogue = context.store.catalogue
    ids = dict.fromkeys(item_id.encode() for item_id, _ in items)
    try:
        states = await catalogue.states(list(ids))
    except StoreUnavailable:
        return False
    found = {each.item_id.decode(): catalogue.read(each.data) for each in states if each.data is not None}
    named = {name.removeprefix(ATTRIBUTE_OF) for name in parts if name.startswith(ATTRIBUTE_OF)}
    for item_id, described in items:
        if (item := found.get(item_id)) is None:
            continue
        if "title" in parts:
            described.title = item.title or None
        if "image" in parts:
            described.image = item.image
        if "categories" in parts:
            described.categories = item.categories
        if named or "attributes" in parts:
            some = {name: each for name, each in item.attributes.items() if not named or name in named}
            described.attributes = shown_values(some)
    return True


async def reasons_of(
    context: ServiceContext, live: LiveGeneration, history: History, rows: Int64s, *, by_score: bool
) -> list[list[Reason]]:
    """Return for each item of a list, by its row (m,), what of the user's history did most for its place:
    for its relevance where the list is by score, else for its rating.
    """
    if len(history) + len(history.feedback) == 0 or not len(rows):
        return [[] for _ in rows]
    if by_score and live.ranking is not None:
        compute = partial(live.ranking.contributions, pack_feedback([history]), rows)
    else:
        packed = pack_histories([history])
        compute = partial(_of_ratings, live, packed, rows)
    rated, parts = await live.in_thread(compute)
    most = min(REASONS_OF_ITEM, len(rated))
    best = np.argsort(-parts, axis=0, kind="stable")[:most]
    values = np.take_along_axis(parts, best, axis=0)
    names = await item_names(context.store.items(live.epoch), rated[best.T.ravel()])
    texts = shown(values.T.ravel(), live.model.scale)
    found = zip(names, texts, values.T.ravel(), strict=True)
    listed = [
        None if name is None or value <= 0 else Reason(item_id=name, contribution=text)
        for name, text, value in found
    ]
    return [
        [each for each in listed[place * most : (place + 1) * most] if each is not None]
        for place in range(len(rows))
    ]


def _of_ratings(live: LiveGeneration, packed: Histories, rows: Int64s) -> tuple[Int32s, Float64s]:
    return contributions(live.posterior, live.items, packed, rows)[1:]


def no_reasons(include: Sequence[str]) -> None:
    """Raise `invalid_rule` where a list that is about no user is asked for reasons."""
    if "reasons" in include:
        raise Problem("invalid_rule", "/include: reasons are of lists for a user", field="/include")
