"""What a store holds, and restores to be killed, for tests of recovery."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from math import isnan
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featurestore.codecs import History
from featurestore.item_registry import ItemRegistry
from featurestore.ratings.context_schema import ContextField
from featurestore.ratings.event_types import NewType, with_new
from featurestore.ratings.log import NewRating
from featurestore.store import Store
from featurestore.telemetry.points import Point
from foldin.recovery.backing_up import back_up
from foldin.recovery.events import read_histories
from foldin.recovery.manifest import Manifest
from foldin.recovery.merging import holding
from foldin.recovery.restoring import Restore, RestoreRequest
from foldin.recovery.verifying import Verified, verify
from tests.support import factories
from tests.support.factories import low_rank_ratings
from tests.support.servers import StoreServer
from tests.support.trainers import Crash, crash_at, cut_off, fitted, running_trainer, until_drained
from tests.support.waiting import wait_until_async
from trainer.archive.segments import Step, no_step
from trainer.settings import TrainerSettings

opened = factories.opened
GIVEN = low_rank_ratings(users=10, items=12)
LATER = low_rank_ratings(users=10, items=12, seed=1, prefix="late")

# By user and item: rating and time, None where that is unknown.
Held = dict[tuple[str, str], tuple[float, float | None]]


async def fill_beside(store: Store, user_id: bytes) -> None:
    """Give a store what it has besides ratings and items; a rating of the user has a context."""
    await store.contexts.tell([ContextField("hour", "number")])
    told = NewRating(user_id, b"i1", 4.0, 1e9, np.array([14], dtype=np.float32))
    await store.ratings.append([told])
    await store.event_types.change(lambda before: with_new(before, [NewType("watch", "positive")]))
    await store.telemetry.add(Point("worker-1", "a", 1.0, 10.0))
    await store.scenarios.put(b"home", b'{"per_category":2}')
    await store.catalogue.schema.hold("items", {"year": "number"})
    await store.attributes.change(user_id, lambda _: {"age": 30.0})


async def held(store: Store, epoch: int | None = None) -> Held:
    """All ratings that hold in an epoch of the store, by default the live one."""
    if epoch is None:
        epoch = (await store.generations.live()).epoch
    events = (await read_histories(store, epoch)).events
    found: Held = {}
    for k in holding(events).tolist():
        time = float(events.time[k])
        pair = events.user_ids[int(events.user[k])].as_py(), events.item_ids[int(events.item[k])].as_py()
        found[pair] = (float(events.rating[k]), None if isnan(time) else time)
    return found


async def now_held(settings: TrainerSettings) -> Held:
    async with opened(settings.store) as store:
        return await held(store)


def without(of: Held, *users: str) -> Held:
    return {pair: entry for pair, entry in of.items() if pair[0] not in users}


def copy_of(settings: TrainerSettings, name: str = "copy") -> Path:
    return Path(shutil.copytree(settings.archive_folder, settings.archive_folder.parent.with_name(name)))


async def backed_up(settings: TrainerSettings, target: Path) -> Manifest:
    async with opened(settings.store) as store:
        return await back_up(store, settings, target, lambda _line: None)


async def verified(settings: TrainerSettings) -> Verified:
    async with opened(settings.store) as store:
        return await verify(store, settings, lambda _line: None)


def empty(server: StoreServer) -> None:
    """As a disk that was swapped."""
    server.kill()
    shutil.rmtree(server.folder / "appendonlydir")
    server.start()


async def archive_ratings(settings: TrainerSettings, given: list[NewRating] = GIVEN) -> Held:
    """A trainer archives `given`, learns it, and ends; what the store holds then."""
    async with opened(settings.store) as store, running_trainer(settings):
        await store.ratings.append(given)
        await fitted(store)
        await until_drained(store)
        return await held(store)


async def restored(
    settings: TrainerSettings, path: Path, *, step: Step = no_step, **how: Any
) -> tuple[int | None, list[str]]:
    """Restore what is at `path`, as `how` says it of a request; what is live then, and the lines shown."""
    lines: list[str] = []
    async with opened(settings.store) as store:
        restore = Restore(store, settings, RestoreRequest(path, **how), lines.append, step=step)
        return await restore.run(), lines


def put_back(server: StoreServer, files: Path) -> None:
    """Let the store have the files of an older copy."""
    server.stop()
    shutil.rmtree(server.folder / "appendonlydir")
    shutil.copytree(files, server.folder / "appendonlydir")
    server.start()


def copied_files(server: StoreServer, folder: Path) -> Path:
    server.stop()
    shutil.copytree(server.folder / "appendonlydir", folder)
    server.start()
    return folder


def trashed(settings: TrainerSettings) -> list[Path]:
    return sorted((settings.archive_folder / "trash").glob("epoch-*Z"))


@asynccontextmanager
async def restored_and_led(
    settings: TrainerSettings, source: Path
) -> AsyncIterator[tuple[Store, int | None, list[str]]]:
    """Restore into a store that is not the archive's, and lead it once that is adopted."""
    restoring = asyncio.create_task(restored(settings, source))
    await wait_until_async(lambda: trashed(settings) or restoring.done(), "the archive is adopted")
    async with running_trainer(settings), opened(settings.store) as store:
        generation, lines = await restoring
        yield store, generation, lines


async def killed_restore(settings: TrainerSettings, source: Path, step: str) -> None:
    """Restore up to a step and no further, with nothing that was begun given up."""
    with cut_off(Restore, "_give_up"), pytest.raises(Crash):
        await restored(settings, source, step=crash_at(step))


async def live_history(store: Store, user_id: bytes) -> tuple[History, ItemRegistry]:
    """The user's history in the live epoch, and the names of its rows."""
    epoch = (await store.generations.live()).epoch
    registry = store.items(epoch)
    await registry.refresh()
    _, history = await store.users.history(epoch, user_id)
    return history, registry
