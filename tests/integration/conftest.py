"""What several tests of a trainer and its archive begin with."""

import asyncio
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from featurestore.settings import StoreSettings
from tests.support.fits import fit_in_thread
from tests.support.recovering import Held, archive_ratings
from tests.support.servers import KIND, ServerKind, StoreServer, running_server
from tests.support.trainers import trainer_settings
from tests.support.waiting import PATIENCE_S
from trainer.settings import TrainerSettings

# How often a trainer looks whether there is something to do: what takes a second or more in production.
ROUNDS_S = {
    "trainer.upkeep._ROUND_S": 0.02,
    "trainer.refit._LOOK_S": 0.02,
    "trainer.commands._LOOK_S": 0.02,
    "trainer.commands._MENDED_S": 0.05,
    "trainer.item_updates.updater.LOOK_S": 0.02,
    "trainer.item_ratings._LOOK_S": 0.02,
    "trainer.item_ratings._TOGETHER_S": 0.02,
    "trainer.erasure.file_rewrites._TOGETHER_S": 0.05,
    "trainer.erasure.file_rewrites._LOOK_S": 0.02,
    "trainer.erasure.older_copy._LOOK_S": 0.02,
    "foldin.recovery.reaching._LOOK_S": 0.02,
}


@pytest.fixture
def quick_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let trainers of this process look for what there is to do without a wait, and end in good order."""
    monkeypatch.setattr("trainer.app._LAST_CALL_S", PATIENCE_S)
    for name, seconds in ROUNDS_S.items():
        monkeypatch.setattr(name, seconds)


def settings_in(folder: Path, server: StoreServer) -> TrainerSettings:
    """Settings whose lease and calls end by no wait: after a kill its key has to be deleted."""
    at = StoreSettings(url=server.url, namespace="t", partitions=4, timeout_s=10.0)
    return trainer_settings(at, folder / "archive", lease_ttl_s=30.0, grace_s=PATIENCE_S)


@pytest.fixture
def settings(own_server: StoreServer, tmp_path: Path) -> TrainerSettings:
    return settings_in(tmp_path, own_server)


@dataclass(frozen=True, slots=True)
class Learned:
    server: StoreServer
    settings: TrainerSettings
    held: Held


async def learn(settings: TrainerSettings) -> Held:
    """Let a trainer learn `GIVEN`, and let connections that were closed be gone before the loop is."""
    held = await archive_ratings(settings)
    for _ in range(20):
        await asyncio.sleep(0)
    return held


@pytest.fixture(scope="session")
def learned_files() -> Iterator[Callable[[ServerKind], tuple[Path, Held]]]:
    made: dict[ServerKind, tuple[Path, Held]] = {}
    with tempfile.TemporaryDirectory(prefix="foldin-learned-") as top:

        def make(kind: ServerKind) -> Held:
            folder = Path(top) / kind
            folder.mkdir()
            with pytest.MonkeyPatch.context() as patch, running_server(kind, folder) as server:
                patch.setattr("trainer.fit_job.process.helper", fit_in_thread)
                held = asyncio.run(learn(settings_in(folder, server)))
                server.stop()
            return held

        def files(kind: ServerKind) -> tuple[Path, Held]:
            if kind not in made:
                # A thread of its own, as this one may have an event loop.
                with ThreadPoolExecutor(1) as thread:
                    made[kind] = Path(top) / kind, thread.submit(make, kind).result()
            return made[kind]

        yield files


@pytest.fixture
def learned(
    store_kind: ServerKind, learned_files: Callable[[ServerKind], tuple[Path, Held]], tmp_path: Path
) -> Iterator[Learned]:
    kind = store_kind if store_kind in ("redis", "valkey") else KIND
    folder, held = learned_files(kind)
    for name in ("appendonlydir", "archive"):
        shutil.copytree(folder / name, tmp_path / name)
    with running_server(kind, tmp_path) as server:
        yield Learned(server, settings_in(tmp_path, server), held)
