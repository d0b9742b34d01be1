"""What a list says of its items beside their scores: what the catalogue has of them, and why they are in it.

Invariant: a list with all that it `include`s takes one look at the catalogue, however many items it has.
"""

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import msgspec
import numpy as np

from factors import Bools, Float64s, Histories, Int32s, Int64s, contributions
from featurestore.catalogue.catalogue import Catalogue
from featurestore.catalogue.item import CatalogueItem
from featurestore.codecs import History, pack_feedback, pack_histories
from featurestore.errors import StoreDamaged, StoreUnavailable
from featurestore.generations.live import LiveGeneration
from service.catalogue.parsing import shown_values
from service.context import ServiceContext
from service.http.problems import Problem
from service.prediction_json import shown
from service.routes.items import item_names
from service.rules.request import ATTRIBUTE_OF

# More reasons are a report, not what stands under a title.
REASONS_OF_ITEM = 2
# Of JSON that is read in about 1 ms.
_QUICK_BYTES = 100_000


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
    ids = dict.fromkeys(item_id.encode() for item_id, _ in items)
    try:
        texts = await context.store.catalogue.texts(list(ids))
    except StoreUnavailable:
        return False
    data = {item_id.decode(): text for item_id, text in zip(ids, texts, strict=True) if text is not None}
    write = partial(_write, context.store.catalogue, parts, items, data)
    if sum(map(len, data.values())) > _QUICK_BYTES:
        await asyncio.to_thread(write)
    else:
        write()
    return True


def _write(
    catalogue: Catalogue,
    parts: Sequence[str],
    items: Sequence[tuple[str, Described]],
    data: Mapping[str, bytes],
) -> None:
    """Write parts of what is stored into `items`; what cannot be read says nothing."""
    found = dict[str, CatalogueItem]()
    for item_id, text in data.items():
        with contextlib.suppress(StoreDamaged):
            found[item_id] = catalogue.read(text)
    named = {name.removeprefix(ATTRIBUTE_OF) for name in parts if name.startswith(ATTRIBUTE_OF)}
    whole = "attributes" in parts
    for item_id, described in items:
        if (item := found.get(item_id)) is None:
            continue
        if "title" in parts:
            described.title = item.title or None
        if "image" in parts:
            described.image = item.image
        if "categories" in parts:
            described.categories = item.categories
        if named or whole:
            some = {name: each for name, each in item.attributes.items() if whole or name in named}
            described.attributes = shown_values(some)


async def reasons_of(
    context: ServiceContext,
    live: LiveGeneration,
    history: History,
    rows: Int64s,
    shown_rows: Bools | None,
    *,
    by_score: bool,
) -> list[list[Reason]]:
    """Return for each item of a list, by its row (m,), what of the user's history did most for its place:
    for its relevance where the list is by score, else for its rating. Neither the item itself nor what may
    not be shown (`shown_rows` (n_items,)) is a reason.
    """
    if len(history) + len(history.feedback) == 0 or not len(rows):
        return [[] for _ in rows]
    # How often an item is chosen has no reason in the history.
    if by_score and live.ranking is not None and not live.by_popularity:
        compute = partial(live.ranking.contributions, pack_feedback([history]), rows)
    else:
        packed = pack_histories([history])
        compute = partial(_of_ratings, live, packed, rows)
    rated, parts = await live.in_thread(compute)
    most = min(REASONS_OF_ITEM, len(rated))
    parts[rated[:, None] == rows[None]] = -np.inf
    if shown_rows is not None:
        inside = rated < len(shown_rows)
        parts[inside & ~shown_rows[np.where(inside, rated, 0)]] = -np.inf
    best = np.argsort(-parts, axis=0, kind="stable")[:most]
    values = np.take_along_axis(parts, best, axis=0)
    names = await item_names(context.store.items(live.epoch), rated[best.T.ravel()])
    texts = shown(np.maximum(values.T.ravel(), 0.0), live.model.scale)
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
