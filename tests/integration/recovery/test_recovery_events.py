"""Events of types other than ratings and contexts of ratings are verified, and come back as they were."""

import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from featurestore.ratings.batches import Columns
from featurestore.ratings.context_schema import ContextField, ContextSchema
from featurestore.ratings.event_types import DEFAULT_TYPES, EventType, NewType, with_new
from featurestore.ratings.log import NewRating
from featurestore.store import Store
from tests.integration.conftest import Learned
from tests.support.recovering import backed_up, empty, live_history, opened, restored, verified
from tests.support.trainers import fitted, running_trainer, until_drained
from trainer.archive.meanings import read_fields, read_types

SHARE = EventType("share", 8, "positive")
# Views beyond the scale, one of an item that was rated, one of an item that has no rating; one taken back.
EVENTS = [(1, "i1", 30.0), (8, "i1", 1.0), (1, "seen-only", -4.0), (4, "i2", 1.0), (4, "i2", np.nan)]
KEPT = [(1, "i1", 30.0), (8, "i1", 1.0), (1, "seen-only", -4.0)]
FIELDS = ContextSchema((ContextField("hour", "number"), ContextField("device", "category", ("phone", "tv"))))
WANTED = {"told-a": {"hour": 14, "device": "tv"}, "told-b": {"device": "phone"}, "told-c": {}}
pytestmark = pytest.mark.usefixtures("quick_rounds")


def told(item: str, *context: float) -> NewRating:
    return NewRating(b"u1", item.encode(), 3.0, 5.0, np.array(context, dtype=np.float32))


async def send(store: Store) -> None:
    codes, items, values = zip(*EVENTS, strict=True)
    columns = Columns(
        [b"u1"] * len(EVENTS),
        [item.encode() for item in items],
        np.array(values),
        np.full(len(EVENTS), 5.0),
        np.array(codes, dtype=np.uint8),
    )
    await store.ratings.append_columns(columns)
    wanted = [NewType(each.name, each.meaning) for each in DEFAULT_TYPES]
    await store.event_types.change(lambda before: with_new(before, [*wanted, NewType("share", "positive")]))
    await store.contexts.change(lambda before: before.merged(FIELDS))
    await store.ratings.append([told("told-a", 14, 1), told("told-b", math.nan, 0), told("told-c", 3)])
    await store.ratings.append([NewRating(b"u1", b"told-c", 3.0, 5.0)])


async def events_of(store: Store) -> list[tuple[int, str, float]]:
    history, registry = await live_history(store, b"u1")
    feedback = history.feedback
    names = [registry.id(row) for row in feedback.item_row.tolist()]
    return list(zip(feedback.type_code.tolist(), names, feedback.value.tolist(), strict=True))


async def contexts_of(store: Store) -> dict[str, dict[str, float | str]]:
    history, registry = await live_history(store, b"u1")
    schema, names = await store.contexts.fresh(), [registry.id(row) for row in history.item_row.tolist()]
    assert history.context is not None
    found = dict(zip(names, map(schema.named, history.context), strict=True))
    return {item: context for item, context in found.items() if item in WANTED or context}


@pytest.mark.slow
async def test_they_are_verified_and_restored_from_either_copy(learned: Learned, tmp_path: Path) -> None:
    settings, backup, copy = learned.settings, tmp_path / "backup", tmp_path / "copy"
    archive = settings.archive_folder / "epoch-000001"
    async with opened(settings.store) as store:
        async with running_trainer(settings):
            await send(store)
            await fitted(store)
            await until_drained(store)
            assert await events_of(store) == KEPT
            assert await contexts_of(store) == WANTED
            assert (await verified(settings)).differences == ()
            await backed_up(settings, backup)
            key = store.keys.user_contexts(1, b"u1")
            data = await store.redis.get(key)
            assert isinstance(data, bytes)
            await store.redis.set(key, data.replace(np.float32(14).tobytes(), np.float32(15).tobytes()))
            (line,) = (await verified(settings)).differences
            assert line == "user u1, item told-a: has another rating, time or context in the archive"
            await store.redis.set(key, data)
        # As one that has lost all but its segments and lists.
        shutil.copytree(archive, copy)
        # An archive that was lost is rebuilt with all of it, and with the names.
        shutil.rmtree(archive)
        async with running_trainer(settings):
            await fitted(store)
            assert (await verified(settings)).differences == ()
        assert read_types(archive)[-1] == SHARE
        assert read_fields(archive) == FIELDS
    for source in (backup, copy):
        empty(learned.server)
        with_new = replace(settings, archive_dir=tmp_path / f"new-{source.name}")
        async with running_trainer(with_new), opened(settings.store) as store:
            # This store has given places and codes to others already.
            other = ContextField("device", "category", ("tv",))
            await store.contexts.change(lambda _: ContextSchema((ContextField("mood", "number"), other)))  # noqa: B023
            await restored(with_new, source)
            assert await events_of(store) == KEPT
            assert (await store.event_types.current())[-1] == SHARE
            assert await contexts_of(store) == WANTED
