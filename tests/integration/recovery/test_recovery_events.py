"""Events of types other than ratings come back, each as what it was."""

import asyncio
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from featurestore.ratings.batches import Columns
from featurestore.ratings.event_types import DEFAULT_TYPES, EventType, NewType, replaced
from featurestore.store import Store
from foldin.recovery.backing_up import back_up
from foldin.recovery.errors import RecoveryRefusedError
from foldin.recovery.restoring import RestoreRequest
from foldin.recovery.verifying import verify
from tests.support.recovering import GIVEN, empty, live_history, opened, restored
from tests.support.servers import StoreServer
from tests.support.trainers import fitted, running_trainer, until_drained
from trainer.archive.type_names import NAME, read_types
from trainer.settings import TrainerSettings

SHARE = 8
# Views beyond the scale, one of an item that was rated, one of an item that has no rating; one taken back.
EVENTS = [(1, "i1", 30.0), (SHARE, "i1", 1.0), (1, "seen-only", -4.0), (4, "i2", 1.0), (4, "i2", np.nan)]
KEPT = [(1, "i1", 30.0), (SHARE, "i1", 1.0), (1, "seen-only", -4.0)]


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
    await store.event_types.change(lambda before: replaced(before, [*wanted, NewType("share", "positive")]))


async def events_of(store: Store) -> tuple[list[tuple[int, str, float]], int]:
    """The events of the user in the live history, and how many ratings there are beside them."""
    history, registry = await live_history(store, b"u1")
    feedback = history.feedback
    names = [registry.id(row) for row in feedback.item_row.tolist()]
    return list(zip(feedback.type_code.tolist(), names, feedback.value.tolist(), strict=True)), len(history)


@pytest.mark.parametrize("kept", ["backup", "archive"])
async def test_events_are_verified_and_restored(
    own_server: StoreServer, settings: TrainerSettings, tmp_path: Path, kept: str
) -> None:
    backup = tmp_path / "backup"
    async with opened(settings.store) as store, running_trainer(settings):
        await store.ratings.append(GIVEN)
        await send(store)
        await fitted(store)
        await until_drained(store)
        before = await events_of(store)
        assert before[0] == KEPT
        assert (await verify(store, settings, print)).differences == ()
        await back_up(store, settings, backup, print)
        archive = settings.archive_folder / "epoch-000001"
        assert read_types(archive)[-1] == EventType("share", SHARE, "positive")
        # As one that has lost all but its segments and lists.
        shutil.copytree(archive, tmp_path / "copy")
    source = {"backup": backup, "archive": tmp_path / "copy"}[kept]
    empty(own_server)
    async with running_trainer(replace(settings, archive_dir=tmp_path / "new")):
        generation, _ = await asyncio.wait_for(restored(settings, source), 60)
        assert generation
        async with opened(settings.store) as store:
            assert await events_of(store) == before
            assert (await store.event_types.current())[-1] == EventType("share", SHARE, "positive")


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["torn", "missing"])
async def test_events_that_nothing_names_are_not_restored(
    own_server: StoreServer, settings: TrainerSettings, tmp_path: Path, damage: str
) -> None:
    async with opened(settings.store) as store:
        async with running_trainer(settings):
            await store.ratings.append(GIVEN)
            await send(store)
            await fitted(store)
            await until_drained(store)
            ratings = (await events_of(store))[1]
        folder = settings.archive_folder / "epoch-000001"
        source = tmp_path / "copy"
        shutil.copytree(folder, source)
        for file in (folder / NAME, source / NAME):
            file.unlink() if damage == "missing" else file.write_text(file.read_text()[:40])
        # The store knows them still, and the next trainer writes them again.
        async with running_trainer(settings):
            await fitted(store)
        assert read_types(folder)[-1] == EventType("share", SHARE, "positive")
    empty(own_server)
    async with running_trainer(replace(settings, archive_dir=tmp_path / "new")):
        with pytest.raises(RecoveryRefusedError, match=NAME if damage == "torn" else f"types {SHARE} are"):
            await restored(settings, source)
        request = RestoreRequest(source, skip_damaged=True)
        await asyncio.wait_for(restored(settings, source, request=request), 60)
        async with opened(settings.store) as store:
            named = [event for event in KEPT if event[0] != SHARE]
            assert await events_of(store) == (named, ratings)
            assert await store.event_types.current() == DEFAULT_TYPES
