"""What a store keeps besides ratings comes back from its archive alone, as from a backup, keys first."""

import asyncio
import shutil
from collections.abc import Mapping
from dataclasses import replace
from operator import attrgetter
from pathlib import Path

import msgspec
import pytest

from featurestore.access import AccessKeys, new_secret
from featurestore.catalogue.dump import Dump, dump_from_bytes
from featurestore.catalogue.item import CatalogueItem
from featurestore.errors import StoreChanged
from featurestore.experiments import Arm, Definition
from featurestore.store import Store
from foldin.recovery.backing_up import back_up
from foldin.recovery.verifying import verify
from tests.integration.conftest import Learned
from tests.support.event_tables import free
from tests.support.factories import put_items
from tests.support.recovering import empty, opened, restored, trashed
from tests.support.serving import serving
from tests.support.trainers import erased, running_trainer
from tests.support.waiting import some, wait_until_async
from trainer.archive.kept import NAME, kept_version, read_kept
from trainer.archive.root import ArchiveRoot
from trainer.settings import TrainerSettings
from trainer.threads import Threads
from trainer.upkeep import KeptFile

pytestmark = pytest.mark.usefixtures("quick_rounds")
ANEW = CatalogueItem("b", "Put anew")
EXPERIMENT = Definition((Arm("a", 0.5, "home"), Arm("b", 0.5, "other")), 1_700_000_000.0)


async def told(store: Store, secret: str) -> None:
    await store.catalogue.schema.hold("items", {"year": "number"})
    await store.catalogue.schema.hold("users", {"city": "text"})
    items = CatalogueItem("a", "A title", hidden=True), CatalogueItem("b", "B", attributes={"year": 1.0})
    await put_items(store, *items, CatalogueItem("gone"))
    await store.catalogue.change({b"gone": lambda _: None})
    for name in (b"home", b"other"):
        await store.scenarios.put(name, b'{"per_category":2}')
    await store.experiments.begin("trial", EXPERIMENT)
    for user in (b"u1", b"u2", b"u3"):
        await store.attributes.change(user, lambda _: {"city": "Sietch Tabr"})
    await store.access.add(secret, "shop", "read")
    await store.access.add(new_secret(), "late", "read")


async def kept(store: Store) -> Dump:
    """What is kept, without what is another in each store: the version, and when attributes were given."""
    dump = dump_from_bytes((await store.kept.packed())[1])
    users = [msgspec.structs.replace(user, at_ms=0) for user in sorted(dump.users, key=attrgetter("user_id"))]
    return msgspec.structs.replace(dump, version="", users=users)


async def until_archived(store: Store, settings: TrainerSettings) -> None:
    await wait_until_async(
        store.kept.version,
        "what is no rating is in the archive",
        lambda version: version == kept_version(settings.archive_folder),
    )


async def lost(learned: Learned, way: str, backup: Path) -> tuple[TrainerSettings, Path]:
    """The store is gone; what a trainer begins with then, and from where all is restored."""
    settings = learned.settings
    empty(learned.server)
    if way == "backup":
        shutil.rmtree(settings.archive_folder.parent)
        async with opened(settings.store) as store:
            await put_items(store, ANEW)
            await store.scenarios.put(b"other", b"{}")
            at_ms = (await store.ratings.forget(b"u2")).at_ms
            await store.commands.ask("erase", epoch=1, user=b"u2", at_ms=at_ms)
        return settings, backup
    if way == "archive":
        return settings, settings.archive_folder
    async with running_trainer(replace(settings, adopt=True)):
        await wait_until_async(lambda: trashed(settings), "the archive is adopted")
    (entry,) = trashed(settings)
    return settings, entry


async def test_what_an_emptied_store_lacks_stays_in_the_archive(settings: TrainerSettings) -> None:
    """The file is written where something has changed alone, and never from a store that is another one."""
    root = ArchiveRoot(settings.archive_folder, guard=free)
    root.take(root.claim("1.test"))
    path = settings.archive_folder / NAME
    async with opened(settings.store) as store:
        clock = iter([0.0, 10.0, 99.0, 100.0, 110.0])
        file = KeptFile(store, root, Threads(), clock=lambda: next(clock))
        await told(store, new_secret())
        await file.follow()
        written = path.stat().st_ino
        await KeptFile(store, root, Threads()).follow()
        assert path.stat().st_ino == written
        await store.scenarios.put(b"home", b"{}")
        # It rests nine times as long as all took.
        await file.follow()
        assert path.stat().st_ino == written
        await file.follow()
        kept_before = some(read_kept(settings.archive_folder))
        assert kept_before.scenarios["home"] == "{}"
        await store.redis.flushall()
        with pytest.raises(StoreChanged):
            await KeptFile(store, root, Threads()).follow()
    assert read_kept(settings.archive_folder) == kept_before


@pytest.mark.parametrize("way", ["archive", "backup", "trash"])
async def test_what_is_no_rating_comes_back(
    learned: Learned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """Into an emptied store, which asks for keys from then on, keeps what was put there since, and gets no
    attributes of who was forgotten since; one that was filled since gets no key back that was removed there,
    nor an experiment that has ended.
    """
    settings, backup, secret = learned.settings, tmp_path / "backup", new_secret()
    lines: list[str] = []
    monkeypatch.setattr("foldin.recovery.restoring.KEYS_FOLLOWED_S", 0.0)
    async with running_trainer(settings), opened(settings.store) as store:
        await told(store, secret)
        await erased(store, b"u3")
        await until_archived(store, settings)
        found = await verify(store, settings, lines.append)
        assert (found.count, [line for line in lines if NAME in line]) == (0, [])
        await back_up(store, settings, backup, lines.append)
        before = await kept(store)
    assert some(read_kept(settings.archive_folder)).users == []
    assert [user.user_id for user in before.users] == ["u1", "u2"]

    settings, source = await lost(learned, way, backup)
    wanted = msgspec.structs.replace(before, users=[])
    if way == "backup":
        items, scenarios = [before.items[0], ANEW], {**before.scenarios, "other": "{}"}
        wanted = msgspec.structs.replace(before, users=before.users[:1], items=items, scenarios=scenarios)
    async with opened(settings.store) as store:
        version = await store.catalogue.version()
    begun: list[tuple[bytes, int]] = []
    put_back = AccessKeys.put_back

    async def noted(access: AccessKeys, texts: Mapping[str, str]) -> None:
        async with opened(settings.store) as store:
            pointer = await store.generations.live()
            begun.append((await store.catalogue.version(), pointer.pending))
        await put_back(access, texts)

    monkeypatch.setattr(AccessKeys, "put_back", noted)
    restoring = asyncio.create_task(restored(settings, source))
    if way == "archive":
        await wait_until_async(lambda: trashed(settings) or restoring.done(), "the archive is adopted")
    async with running_trainer(settings), opened(settings.store) as store:
        _, lines = await restoring
        assert await kept(store) == wanted
        assert begun == [(version, 0)]
        assert any("items of the catalogue" in line for line in lines)
        said = any("Attributes of users are in backups alone" in line for line in lines)
        assert said == (way != "backup")
        async with serving(settings.store) as (client, _):
            assert (await client.get("/items/a")).status == 401
            item = (await client.get("/items/a", headers={"Authorization": f"Bearer {secret}"})).json
            assert (item["title"], item["hidden"]) == ("A title", True)

        await store.access.remove("late")
        await store.experiments.end("trial", 2)
        await until_archived(store, settings)
        _, lines = await restored(settings, backup, live="none")
        assert any("stay out: late:read" in line for line in lines)
        assert (await kept(store)).experiments == {}
        assert secret not in str(await kept(store))
        await store.redis.hset(store.keys.catalogue_items, "a", b"of another format")
        found = await verify(store, settings, lines.append)
        assert any("catalogue}:items" in each for each in found.differences)
