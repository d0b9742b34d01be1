"""What earlier releases left on their disks is read for ever, and what a later one wrote is refused.

`golden/` has the store, the archive and a backup of each release. A format that changes without a reader of
the one before fails here.
"""

import ast
import json
import re
import tarfile
import tomllib
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from featurestore.access import new_secret
from featurestore.errors import StoreRefused
from featurestore.namespace import LAYOUT
from featurestore.settings import StoreSettings
from featurestore.store import Store
from tests.support import house
from tests.support.recovering import now_held, restored
from tests.support.releases import last_release
from tests.support.servers import StoreServer
from tests.support.serving import Service, serving
from tests.support.trainers import archived, fitted, refused, running_trainer, trainer_settings, until_drained
from tests.upgrade.golden import FOLDER, NAMESPACE, asked, put_contents
from trainer.archive.root import ArchiveRoot

GOLDEN = sorted(FOLDER.glob("*.tar.gz"))
PAGE = house.ROOT / "docs/upgrades.md"
PACKAGES = (
    "factors",
    "featurestore",
    "service",
    "trainer",
    "foldin",
    "processes",
    "environment",
    "evaluation",
)
FORMAT = re.compile(r"_?([A-Z]+_)?(FORMAT|LAYOUT)")


def formats() -> dict[str, str]:
    """The formats that the code declares: `module:NAME` and its value."""
    found = {}
    for package in PACKAGES:
        for path in sorted((house.ROOT / package).rglob("*.py")):
            for node in ast.parse(path.read_text("utf-8")).body:
                if not isinstance(node, ast.Assign) or not isinstance(node.value, ast.Constant):
                    continue
                for target in node.targets:
                    if isinstance(target, ast.Name) and FORMAT.fullmatch(target.id):
                        value = node.value.value
                        text = value.decode() if isinstance(value, bytes) else str(value)
                        found[f"{path.relative_to(house.ROOT)}:{target.id}"] = text
    return found


def listed() -> dict[str, str]:
    """The same as docs/upgrades.md has it."""
    rows = re.findall(r"^\| .* \| `([\w/.]+:\w+)` \| `?([\w-]+)`? \| ", PAGE.read_text("utf-8"), re.MULTILINE)
    return dict(rows)


def test_every_format_of_the_code_is_in_the_table_with_its_version() -> None:
    assert len(formats()) >= 9
    assert listed() == formats()


def test_the_last_release_left_its_golden_files() -> None:
    assert FOLDER / f"{last_release().version}.tar.gz" in GOLDEN


@pytest.fixture(params=GOLDEN, ids=lambda path: path.name.removesuffix(".tar.gz"))
def golden(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    with tarfile.open(request.param) as files:
        files.extractall(tmp_path / "golden", filter="data")
    return tmp_path / "golden"


def settings_of(server: StoreServer) -> StoreSettings:
    return StoreSettings(url=server.url, namespace=NAMESPACE, partitions=2, timeout_s=5.0)


async def filled(server: StoreServer, golden: Path) -> None:
    redis: Any = Redis.from_url(server.url)
    await put_contents(redis, json.loads((golden / "store.json").read_text()))
    await redis.aclose()


@pytest.mark.parametrize("own_server", ["redis", "valkey"], indirect=True)
async def test_a_stack_starts_on_what_a_release_left(own_server: StoreServer, golden: Path) -> None:
    """Its answers are the same, each rating is there, and the next fit goes on from it."""
    await filled(own_server, golden)
    said = json.loads((golden / "answers.json").read_text())
    store_settings = settings_of(own_server)
    store = await Store.open(store_settings)
    key = new_secret()
    await store.access.add(key, "operator", "operate")
    headers = {"X-API-Key": key}
    settings = trainer_settings(store_settings, golden / "archive")
    async with serving(store_settings) as (client, _):
        found = await asked(client, headers=headers)
        assert found["ratings"] == said["ratings"]
        assert found["predictions"] == pytest.approx(said["predictions"], abs=1e-3)
        async with running_trainer(settings):
            await fitted(store)
            await until_drained(store)
        assert (await asked(client, headers=headers))["ratings"] == said["ratings"]
    last = {(user, item): value for user, _, item, value in archived(settings, 2)}
    assert last == {
        (user, item): value for user, ratings in said["ratings"].items() for item, value in ratings.items()
    }
    root = ArchiveRoot(settings.archive_folder, guard=lambda: None)
    assert [(entry.epoch, entry.why, entry.ratings > 0) for entry in root.trash.entries()] == [
        (1, "replaced", True)
    ]
    await store.close()


@pytest.mark.parametrize("source", ["backup", "archive"])
async def test_a_backup_and_an_archive_of_a_release_are_restored(
    own_server: StoreServer, golden: Path, tmp_path: Path, source: str
) -> None:
    said = json.loads((golden / "answers.json").read_text())["ratings"]
    settings = trainer_settings(settings_of(own_server), tmp_path / "archive")
    async with running_trainer(settings):
        path = golden / source / NAMESPACE if source == "archive" else golden / source
        generation, _ = await restored(settings, path)
    assert generation
    found = {pair: value for pair, (value, _) in (await now_held(settings)).items()}
    # One rating came after the backup, and waited in its stream.
    said["u2"].pop("i2")
    found.pop(("u2", "i2"), None)
    assert found == {(user, item): value for user, rated in said.items() for item, value in rated.items()}


@pytest.mark.slow
async def test_a_namespace_of_a_newer_layout_is_refused_untouched(
    own_server: StoreServer, tmp_path: Path
) -> None:
    store_settings = settings_of(own_server)
    await (await Store.open(store_settings)).close()
    redis: Any = Redis.from_url(own_server.url)
    newer = int(LAYOUT) + 1
    await redis.hset(f"{NAMESPACE}:config", "layout", newer)
    before = {key: await redis.dump(key) for key in await redis.keys("*")}
    says = f"has layout {newer}, this version reads {LAYOUT.decode()}: use the version that wrote it"
    with pytest.raises(StoreRefused, match=says):
        await Store.open(store_settings)
    assert says in await refused(trainer_settings(store_settings, tmp_path / "archive"))
    service = Service(store_settings, tmp_path)
    assert service.process.wait(30.0) == 2
    assert says in service.log.read_text()
    assert {key: await redis.dump(key) for key in await redis.keys("*")} == before
    await redis.aclose()


def test_this_code_is_not_the_release_before_and_its_changes_are_not_among_those() -> None:
    version = tomllib.loads((house.ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    before = last_release().version
    assert version != before
    assert f"ARG VERSION={version}\n" in (house.ROOT / "Dockerfile").read_text("utf-8")
    changes = (house.ROOT / "CHANGELOG.md").read_text("utf-8")
    newest = f"## {version} - " if "dev" not in version else "## Unreleased\n"
    assert 0 < changes.index(newest) < changes.index(f"## {before} - ")
    # A merge that puts what is new among what was released leaves it in both places.
    told = re.split(r"^(?=- |#)", changes, flags=re.M)
    entries = [" ".join(each.split()) for each in told if each.startswith("- ")]
    assert len(set(entries)) == len(entries)
