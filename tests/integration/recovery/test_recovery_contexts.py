"""Contexts of ratings come back, each with its rating, also into a store that has other fields."""

import asyncio
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from featurestore.ratings.context_schema import ContextField, ContextSchema
from featurestore.ratings.log import NewRating
from featurestore.store import Store
from foldin.recovery.backing_up import back_up
from foldin.recovery.errors import RecoveryRefusedError
from foldin.recovery.verifying import verify
from tests.support.recovering import GIVEN, empty, live_history, opened, restored
from tests.support.servers import StoreServer
from tests.support.trainers import fitted, running_trainer, until_drained
from tests.support.waiting import wait_until_async
from trainer.archive.context_fields import NAME, read_fields
from trainer.settings import TrainerSettings

FIELDS = ContextSchema((ContextField("hour", "number"), ContextField("device", "category", ("phone", "tv"))))
WANTED = {"told-a": {"hour": 14, "device": "tv"}, "told-b": {"device": "phone"}, "told-c": {}}


def told(item: str, *context: float) -> NewRating:
    return NewRating(b"u1", item.encode(), 3.0, 5.0, np.array(context, dtype=np.float32))


async def send(store: Store) -> None:
    await store.contexts.change(lambda before: before.merged(FIELDS))
    await store.ratings.append([told("told-a", 14, 1), told("told-b", math.nan, 0), told("told-c", 3)])
    await store.ratings.append([NewRating(b"u1", b"told-c", 3.0, 5.0)])


async def contexts_of(store: Store) -> dict[str, dict[str, float | str]]:
    """What was told with the ratings of the user, by item."""
    history, registry = await live_history(store, b"u1")
    schema, names = await store.contexts.fresh(), [registry.id(row) for row in history.item_row.tolist()]
    assert history.context is not None
    found = dict(zip(names, map(schema.named, history.context), strict=True))
    return {item: context for item, context in found.items() if item in WANTED or context}


@pytest.mark.parametrize("kept", ["backup", "archive"])
async def test_contexts_are_verified_and_restored(
    own_server: StoreServer, settings: TrainerSettings, tmp_path: Path, kept: str
) -> None:
    backup = tmp_path / "backup"
    async with opened(settings.store) as store, running_trainer(settings):
        await store.ratings.append(GIVEN)
        await send(store)
        await fitted(store)
        await until_drained(store)
        assert await contexts_of(store) == WANTED
        assert (await verify(store, settings, print)).differences == ()
        await back_up(store, settings, backup, print)
        archive = settings.archive_folder / "epoch-000001"
        assert read_fields(archive) == FIELDS
        # As one that has lost all but its segments and lists.
        shutil.copytree(archive, tmp_path / "copy")
        # Other bytes than were archived: of a number, and of what is there at all.
        key = store.keys.user_contexts(1, b"u1")
        data = await store.redis.get(key)
        assert isinstance(data, bytes)
        await store.redis.set(key, data.replace(np.float32(14).tobytes(), np.float32(15).tobytes()))
        (line,) = (await verify(store, settings, print)).differences
        assert line == "user u1, item told-a: has another rating, time or context in the archive"
        await store.redis.set(key, data[:-1])
        assert any("told-a" in line for line in (await verify(store, settings, print)).differences)
    source = {"backup": backup, "archive": tmp_path / "copy"}[kept]
    empty(own_server)
    async with running_trainer(replace(settings, archive_dir=tmp_path / "new")):
        async with opened(settings.store) as store:
            # This store has given places and codes to others already.
            other = ContextField("device", "category", ("tv",))
            await store.contexts.change(lambda _: ContextSchema((ContextField("mood", "number"), other)))
        generation, _ = await asyncio.wait_for(restored(settings, source), 90)
        assert generation
        async with opened(settings.store) as store:
            assert await contexts_of(store) == WANTED


async def copied(settings: TrainerSettings, server: StoreServer, folder: Path) -> Path:
    """A copy of the archive of a history with contexts, whose store is empty now."""
    async with opened(settings.store) as store, running_trainer(settings):
        await store.ratings.append(GIVEN)
        await send(store)
        await fitted(store)
        await until_drained(store)
    shutil.copytree(settings.archive_folder / "epoch-000001", folder)
    empty(server)
    return folder


async def test_a_field_that_means_something_else_is_refused(
    settings: TrainerSettings, own_server: StoreServer, tmp_path: Path
) -> None:
    source = await copied(settings, own_server, tmp_path / "copy")
    other = replace(settings, archive_dir=tmp_path / "new")
    async with running_trainer(other):
        async with opened(settings.store) as store:
            await store.contexts.change(lambda _: ContextSchema((ContextField("hour", "category"),)))
        with pytest.raises(RecoveryRefusedError, match="hour"):
            await restored(other, source)
        (source / NAME).unlink()
        with pytest.raises(RecoveryRefusedError, match="does not say what the contexts"):
            await restored(other, source)


async def test_what_is_retired_is_kept_and_comes_back_as_it_was(
    settings: TrainerSettings, own_server: StoreServer, tmp_path: Path
) -> None:
    """A backup has it, restored ratings keep it, and what a store has retired since stays retired."""
    backup = tmp_path / "backup"
    shown = {"told-a": {"device": "tv"}, "told-b": {}, "told-c": {}}
    async with opened(settings.store) as store, running_trainer(settings):
        await store.ratings.append(GIVEN)
        await send(store)
        # Each waits until no process goes by what was before: the first fit is to find both.
        retire = store.contexts.retire
        await asyncio.gather(retire("hour"), retire("device", "phone"))
        await fitted(store)
        await until_drained(store)
        assert await contexts_of(store) == shown
        # What a fit has learned from: of the four values that were told, the one that is not retired.
        (learned,) = {each.resolve() for each in settings.archive_folder.rglob("item_contexts.npy")}
        assert np.load(learned)[~np.isnan(np.load(learned))].tolist() == [1.0]
        assert (await verify(store, settings, print)).differences == ()
        await back_up(store, settings, backup, print)
        assert read_fields(settings.archive_folder / "epoch-000001").retired == [(0, None), (1, 0)]
    empty(own_server)
    async with running_trainer(replace(settings, archive_dir=tmp_path / "new")):
        async with opened(settings.store) as store:
            mine = ContextSchema(
                (ContextField("mood", "number"), ContextField("device", "category", ("tv",)))
            )
            await store.contexts.change(lambda _: mine.without("device", "tv"))
        generation, _ = await asyncio.wait_for(restored(settings, backup), 90)
        assert generation
        async with opened(settings.store) as store:
            schema = await store.contexts.fresh()
            assert [each.name for each in schema.shown] == ["mood", "device"]
            assert await contexts_of(store) == {"told-a": {}, "told-b": {}, "told-c": {}}
            await store.contexts.tell(FIELDS.fields)
            assert await contexts_of(store) == WANTED


async def test_more_fields_than_fit_are_refused_with_a_way_round(
    settings: TrainerSettings, own_server: StoreServer, tmp_path: Path
) -> None:
    source = await copied(settings, own_server, tmp_path / "copy")
    other = replace(settings, archive_dir=tmp_path / "new")
    async with running_trainer(other):
        async with opened(settings.store) as store:
            many = ContextSchema(tuple(ContextField(f"v{k}", "number") for k in range(31)))
            await store.contexts.tell(many.fields)
        with pytest.raises(RecoveryRefusedError, match="DELETE /schema/context/NAME retires one"):
            await restored(other, source)
        async with opened(settings.store) as store:
            await store.contexts.retire("v0")
        generation, _ = await asyncio.wait_for(restored(other, source), 90)
        assert generation
        async with opened(settings.store) as store:
            assert await contexts_of(store) == WANTED


async def test_a_rebuilt_archive_has_the_contexts(settings: TrainerSettings) -> None:
    async with opened(settings.store) as store:
        async with running_trainer(settings):
            await store.ratings.append(GIVEN)
            await send(store)
            await fitted(store)
            await until_drained(store)
        shutil.rmtree(settings.archive_folder / "epoch-000001")
        async with running_trainer(settings):
            await fitted(store)
            assert (await verify(store, settings, print)).differences == ()
        assert await contexts_of(store) == WANTED


async def test_erasure_leaves_no_context(settings: TrainerSettings, own_server: StoreServer) -> None:
    mark = 1234.5678
    async with opened(settings.store) as store, running_trainer(settings):
        await store.ratings.append(GIVEN)
        await store.contexts.change(lambda before: before.merged(FIELDS))
        await store.ratings.append([told("told-a", mark, 1)])
        await fitted(store)
        await until_drained(store)
        bits = np.float32(mark).tobytes()
        folder = settings.archive_folder
        assert any(bits in path.read_bytes() for path in folder.rglob("*.npy"))
        forgotten = await store.ratings.forget(b"u1")
        await store.commands.ask("erase", epoch=1, user=b"u1", at_ms=forgotten.at_ms)

        async def gone() -> bool:
            return not any(bits in path.read_bytes() for path in folder.rglob("*") if path.is_file())

        await wait_until_async(gone, "nothing of the user is in the archive and its fits")
        await until_drained(store)
        assert not await store.redis.exists(store.keys.user_contexts(1, b"u1"))
