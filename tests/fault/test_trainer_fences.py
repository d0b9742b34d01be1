"""A leader that is frozen at a step, replaced, and woken: what it does then changes nothing that counts.

Its clock stands still, as that of a paused machine does: no look at the time keeps it back.

`FOLDIN_TEST_ALL_FREEZES=1` freezes at every step on two folders, too. Without it two of them are drawn by the
seed of the run, which pytest prints and takes (`--randomly-seed=N`).
"""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featurestore.generations.catalog import Generations
from featurestore.ratings.log import NewRating
from featurestore.settings import StoreSettings
from featurestore.store import Store
from tests.support.recovering import held
from tests.support.trainers import (
    ChildTrainer,
    archived,
    fitted,
    running_trainer,
    trainer_settings,
    until_drained,
)
from tests.support.waiting import wait_until_async
from trainer.settings import TrainerSettings

pytestmark = [pytest.mark.slow, pytest.mark.fault]

LEASE_S = 2.0
STILL_CLOCK = "import trainer.leadership as m; m.Leadership.check = lambda self: None\n"
# The steps of a term in the order in which a leader comes to them, with how often before it is frozen.
STEPS = [
    ("archive:take", 1),
    ("consume:read", 2),
    ("segment:write", 2),
    ("segment:written", 2),
    ("segment:synced", 2),
    ("segment:renamed", 2),
    ("segment:done", 2),
    ("consume:archived", 2),
    ("consume:done", 2),
    ("command:running", 1),
    ("fit:reached", 1),
    ("fit:started", 1),
    ("fit:done", 1),
    ("publish:begin", 2),
    ("publish:begun", 1),
    ("publish:begun", 2),
    ("publish:items", 2),
    ("publish:some_users", 1),
    ("publish:users", 2),
    ("publish:finished", 2),
    ("publish:flipped", 2),
    ("command:done", 1),
    ("command:reported", 1),
    ("items:push", 1),
    ("replace:unlink", 1),
    ("replace:unlinked", 1),
    ("tend:merged", 1),
]
# On two folders always; and so many more, each of which takes some ten seconds.
ELSEWHERE = [
    ("segment:synced", 2),
    ("consume:archived", 2),
    ("publish:begun", 2),
    ("items:push", 1),
]
ALL = os.environ.get("FOLDIN_TEST_ALL_FREEZES") == "1"


@pytest.fixture
def settings(store_settings: StoreSettings, tmp_path: Path) -> TrainerSettings:
    return trainer_settings(store_settings, tmp_path / "archive", lease_ttl_s=LEASE_S)


@pytest.fixture(params=["same", "another"] if ALL else ["same"])
def successor(request: pytest.FixtureRequest, settings: TrainerSettings, tmp_path: Path) -> TrainerSettings:
    """The settings of the next leader, on the same folder or on another one."""
    if request.param == "same":
        return settings
    return trainer_settings(settings.store, tmp_path / "elsewhere", lease_ttl_s=LEASE_S)


@pytest.fixture
def pushed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The generation of each push of deltas by this process."""
    found: list[int] = []
    push = Generations.push_delta

    async def noted(self: Generations, *args: Any, **named: Any) -> None:
        await push(self, *args, **named)
        found.append(args[2])

    monkeypatch.setattr(Generations, "push_delta", noted)
    return found


def ratings(seed: int, users: int = 25) -> list[NewRating]:
    rng = np.random.default_rng(seed)
    return [
        NewRating(f"u{user}".encode(), f"i{item}".encode(), float(rng.integers(1, 6)), 1e9 + seed)
        for user in range(users)
        for item in rng.permutation(10)[:4]
    ]


async def until_frozen(store: Store, child: ChildTrainer, given: list[NewRating]) -> None:
    """Rate until the trainer is frozen."""
    for seed in range(1, 200):
        more = ratings(seed, users=3)
        await store.ratings.append(more)
        given += more
        try:
            await wait_until_async(lambda: child.frozen, "the trainer frozen", timeout_s=0.2)
        except AssertionError:
            assert not child.ended
            continue
        return
    raise AssertionError


async def woken(child: ChildTrainer, settings: TrainerSettings) -> None:
    """Wake the trainer, and wait until it knows that it has been replaced."""
    log = settings.archive_folder.parent.with_name("trainer.log")
    child.process.send_signal(signal.SIGCONT)
    await wait_until_async(lambda: b"lease_lost" in log.read_bytes(), "the frozen trainer knows")
    assert not child.ended
    # In place of a traceback for each thing that failed in its hands.
    assert "Traceback" not in log.read_text()


async def replaced(
    store: Store,
    settings: TrainerSettings,
    successor: TrainerSettings,
    pushed: list[int],
    *,
    frozen_at: tuple[str, int],
    patch: str = "",
) -> list[NewRating]:
    """Freeze a leader, let another one lead, wake the first; return what was acknowledged. At the end archive
    and store have that, and so does the next generation.
    """
    given = ratings(0)
    await store.ratings.append(given)
    # A late push is for the generation that it was folded in for: that one stays live then. Where a fence is
    # taken out, fits get into each other's way before what is to be seen happens.
    refit = frozen_at[0] != "items:push" and not patch
    command = await store.commands.ask("refit", epoch=1) if refit else ""
    if frozen_at[0] == "archive:take":
        # As a leader that was killed leaves it.
        settings.archive_folder.parent.mkdir()
        settings.archive_folder.with_suffix(".term-0.killed").symlink_to(settings.archive_folder.name)
    child = ChildTrainer(settings, *frozen_at, signal.SIGSTOP, STILL_CLOCK + patch)
    try:
        await until_frozen(store, child, given)
        # So that the next one writes another segment than that which is under way.
        more = ratings(999, users=5)
        await store.ratings.append(more)
        given += more
        was_live = (await store.generations.live()).generation
        entries = int(await store.redis.xlen(store.keys.deltas(1, was_live)))
        async with running_trainer(successor) as other:
            await wait_until_async(lambda: other.term is not None, "the next one leads")
            outcome = await store.commands.wait(command, 60 if refit else 0)
            assert not refit or (outcome is not None and outcome.state == "done"), outcome
            await until_drained(store)
            if not refit:
                # What is pushed before its claim counts as what was pushed before the freeze.
                await wait_until_async(lambda: pushed, "deltas of the next one")
            live = (await store.generations.live()).generation
            before = entries if live == was_live else 0
            await woken(child, settings)
            assert await store.commands.outcome(command) == outcome
            more = ratings(1000, users=5)
            await store.ratings.append(more)
            given += more
            await until_drained(store)
            await wait_until_async(
                # A push may be under way: its entry comes before the note of it.
                lambda: deltas_are(store, live, lambda: before + pushed.count(live)),
                "deltas of the one that leads alone",
            )
            generation = await fitted(store)
            meta = await store.generations.meta(1, generation)
            states = {summary.state for summary in await store.generations.list()}
    finally:
        child.end()
    if successor is settings:
        found = sorted((user, n) for user, n, _, _ in archived(settings))
        assert found == numbered(given), "each event once"
    pairs = {(r.user_id.decode(), r.item_id.decode()): (r.rating, r.time) for r in given}
    assert await held(store) == pairs
    assert meta.summary.n_ratings == len(pairs)
    assert states == {"ready"}
    return given


async def deltas_are(store: Store, generation: int, count: Callable[[], int]) -> bool:
    """Whether a generation has so many entries of deltas."""
    return int(await store.redis.xlen(store.keys.deltas(1, generation))) == count()


def numbered(given: list[NewRating]) -> list[tuple[str, int]]:
    """User and count of each rating."""
    counts: dict[str, int] = {}
    found = []
    for rating in given:
        user = rating.user_id.decode()
        counts[user] = counts.get(user, 0) + 1
        found.append((user, counts[user]))
    return sorted(found)


@pytest.mark.parametrize(("step", "occurrence"), STEPS)
async def test_frozen_at_a_step_on_the_same_folder(
    store: Store, settings: TrainerSettings, pushed: list[int], step: str, occurrence: int
) -> None:
    await replaced(store, settings, settings, pushed, frozen_at=(step, occurrence))
    # No name of a term that has ended, and nothing set aside.
    assert [path.name for path in settings.archive_folder.parent.iterdir()] == [settings.store.namespace]
    assert not list(settings.archive_folder.parent.rglob("*.damaged"))


@pytest.mark.parametrize(("step", "occurrence"), STEPS if ALL else ELSEWHERE)
async def test_frozen_at_a_step_on_another_folder(
    store: Store,
    settings: TrainerSettings,
    pushed: list[int],
    tmp_path: Path,
    *,
    step: str,
    occurrence: int,
) -> None:
    elsewhere = trainer_settings(settings.store, tmp_path / "elsewhere", lease_ttl_s=LEASE_S)
    given = await replaced(store, settings, elsewhere, pushed, frozen_at=(step, occurrence))
    # Rebuilt from the histories, where the first had trimmed: of superseded ratings not all are left.
    pairs = {(r.user_id.decode(), r.item_id.decode()) for r in given}
    assert {(user, item) for user, _, item, _ in archived(elsewhere)} == pairs
