"""A trainer that is killed at a step, and a leader that is frozen there, replaced, and woken: the next one
finds everything, once, and a whole generation; what the woken one does changes nothing that counts.

`FOLDIN_TEST_ALL_FREEZES=1` kills and freezes at every step, each of which takes some ten seconds.
"""

import asyncio
import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pytest

from featurestore.generations.catalog import Generations
from featurestore.ratings.batches import Columns
from featurestore.ratings.log import NewRating
from featurestore.settings import StoreSettings
from featurestore.store import Store
from tests.support.recovering import held
from tests.support.trainers import (
    ChildTrainer,
    archived,
    fitted,
    running_fits,
    running_trainer,
    trainer_settings,
    until_drained,
)
from tests.support.waiting import PATIENCE_S, some, wait_until_async
from trainer.settings import TrainerSettings

pytestmark = [pytest.mark.slow, pytest.mark.fault]

LEASE_S = 10.0
# Its clock stands still, as that of a paused machine does: no look at the time keeps it back.
STILL_CLOCK = "import trainer.leadership as m; m.Leadership.check = lambda self: None\n"
# Steps, and how often a trainer comes there before it is killed, or frozen.
KILLED = ["consume:archived 2", "fit:started 1", "publish:some_users 1", "publish:flipped 2"]
FROZEN = ["segment:synced 2", "publish:begun 2", "command:done 1", "items:push 1"]
if os.environ.get("FOLDIN_TEST_ALL_FREEZES") == "1":
    KILLED += [
        *("consume:read 1", "segment:written 2", "segment:renamed 2", "consume:done 1", "fit:done 1"),
        *("publish:begun 1", "publish:begun 2", "publish:items 2"),
        *("publish:finished 1", "publish:finished 2", "items:push 1"),
    ]
    FROZEN += [
        *("archive:take 1", "consume:read 2", "segment:write 2", "segment:written 2", "segment:renamed 2"),
        *("segment:done 2", "consume:archived 2", "consume:done 2", "command:running 1", "fit:reached 1"),
        *("fit:started 1", "fit:done 1", "publish:begin 2", "publish:begun 1", "publish:items 2"),
        *("publish:some_users 1", "publish:users 2", "publish:finished 2", "publish:flipped 2"),
        *("command:reported 1", "replace:unlink 1", "replace:unlinked 1", "tend:merged 1"),
    ]


@pytest.fixture
def settings(store_settings: StoreSettings, tmp_path: Path) -> TrainerSettings:
    return trainer_settings(store_settings, tmp_path / "archive", lease_ttl_s=LEASE_S)


def ratings(seed: int, users: int = 25) -> list[NewRating]:
    rng = np.random.default_rng(seed)
    return [
        NewRating(f"u{user}".encode(), f"i{item}".encode(), float(rng.integers(1, 6)), 1e9 + seed)
        for user in range(users)
        for item in rng.permutation(10)[:4]
    ]


def numbered(given: list[NewRating]) -> list[tuple[str, int]]:
    counts = Counter(each.user_id.decode() for each in given)
    return sorted((user, n) for user, count in counts.items() for n in range(1, count + 1))


def viewed(rated: list[NewRating]) -> Columns:
    users, items = [each.user_id for each in rated], [each.item_id for each in rated]
    size = len(rated)
    return Columns(users, items, np.ones(size), np.full(size, 1e9), np.full(size, 1, dtype=np.uint8))


async def live_is_whole(store: Store) -> None:
    pointer = await store.generations.live()
    if pointer.generation:
        meta = await store.generations.meta(pointer.epoch, pointer.generation)
        assert meta.summary.state == "ready"
        table = b"".join([piece async for piece in store.generations.load_items(meta)])
        assert (len(table), crc32(table)) == (4 * meta.item_rows * meta.model.item_width, meta.crc32)


@pytest.mark.parametrize("at", KILLED)
async def test_killed_at_a_step(store: Store, settings: TrainerSettings, at: str) -> None:
    given = ratings(0)
    views: list[NewRating] = []
    await store.ratings.append(given)
    command = await store.commands.ask("refit", epoch=1)
    step, times = at.split()
    child = ChildTrainer(settings, step, int(times))
    try:
        for seed in range(1, 400):
            if child.ended:
                break
            more = ratings(seed, users=3)
            await store.ratings.append(more)
            await store.ratings.append_columns(viewed(more))
            given += more
            views += more
            await asyncio.sleep(0.2)
        assert child.ended, "it came to its step"
        assert child.end() == -signal.SIGKILL
    finally:
        child.end()
    await live_is_whole(store)
    # The next one leads at once.
    await store.redis.delete(store.keys.lease)
    async with running_trainer(settings):
        outcome = some(await store.commands.wait(command, PATIENCE_S))
        assert outcome.state == "done", outcome
        await until_drained(store)
        generation = await fitted(store)
        await live_is_whole(store)
        meta = await store.generations.meta(1, generation)
        states = {summary.state for summary in await store.generations.list()}
    found = sorted((user, n) for user, n, _, _ in archived(settings))
    assert found == numbered([*given, *views]), "each event once"
    assert meta.summary.n_ratings == len({(rating.user_id, rating.item_id) for rating in given})
    assert states == {"ready"}


async def test_fit_ends_with_its_parent(store: Store, settings: TrainerSettings) -> None:
    await store.ratings.append(ratings(0))
    await store.commands.ask("refit", epoch=1)
    child = ChildTrainer(settings, "fit:started", how=signal.SIGSTOP)
    try:
        await wait_until_async(lambda: child.frozen, "the trainer stopped")
        (fit,) = await wait_until_async(lambda: running_fits(child.process.pid), "the process of the fit")
    finally:
        assert child.end() == -signal.SIGKILL
    # What is left of a process until its parent has asked for its end has no command line.
    line = Path(f"/proc/{fit}/cmdline")
    await wait_until_async(lambda: not (line.exists() and line.read_bytes()), "the fit gone with its trainer")


@pytest.fixture
def pushed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    found: list[int] = []
    push = Generations.push_delta

    async def noted(self: Generations, *args: Any, **named: Any) -> None:
        await push(self, *args, **named)
        found.append(args[2])

    monkeypatch.setattr(Generations, "push_delta", noted)
    return found


async def until_frozen(store: Store, child: ChildTrainer, given: list[NewRating]) -> None:
    for seed in range(1, 1000):
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
    log = settings.archive_folder.parent.with_name("trainer.log")
    child.process.send_signal(signal.SIGCONT)
    await wait_until_async(lambda: b"lease_lost" in log.read_bytes(), "the frozen trainer knows")
    assert not child.ended
    # In place of a traceback for each thing that failed in its hands.
    assert "Traceback" not in log.read_text()


@pytest.mark.parametrize("at", FROZEN)
async def test_frozen_at_a_step_on_the_same_folder(
    store: Store, settings: TrainerSettings, pushed: list[int], at: str
) -> None:
    """Another one leads, then the first is woken: archive and store have what was acknowledged."""
    given = ratings(0)
    await store.ratings.append(given)
    step, times = at.split()
    # A late push is for the generation that it was folded in for: that one stays live then.
    refit = step != "items:push"
    command = await store.commands.ask("refit", epoch=1) if refit else ""
    if step == "archive:take":
        # As a leader that was killed leaves it.
        settings.archive_folder.parent.mkdir()
        settings.archive_folder.with_suffix(".term-0.killed").symlink_to(settings.archive_folder.name)
    child = ChildTrainer(settings, step, int(times), signal.SIGSTOP, STILL_CLOCK)
    try:
        await until_frozen(store, child, given)
        # So that the next one writes another segment than that which is under way.
        more = ratings(999, users=5)
        await store.ratings.append(more)
        given += more
        was_live = (await store.generations.live()).generation
        entries = int(await store.redis.xlen(store.keys.deltas(1, was_live)))
        async with running_trainer(settings) as other:
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
            # A push may be under way: its entry comes before the note of it.
            await wait_until_async(
                lambda: store.redis.xlen(store.keys.deltas(1, live)),
                "deltas of the one that leads alone",
                lambda entries: entries == before + pushed.count(live),
            )
            generation = await fitted(store)
            meta = await store.generations.meta(1, generation)
            states = {summary.state for summary in await store.generations.list()}
    finally:
        child.end()
    pairs = {(r.user_id.decode(), r.item_id.decode()): (r.rating, r.time) for r in given}
    assert await held(store) == pairs
    assert meta.summary.n_ratings == len(pairs)
    assert states == {"ready"}
    found = sorted((user, n) for user, n, _, _ in archived(settings))
    assert found == numbered(given), "each event once"
    # No name of a term that has ended, and nothing set aside.
    assert [path.name for path in settings.archive_folder.parent.iterdir()] == [settings.store.namespace]
    assert not list(settings.archive_folder.parent.rglob("*.damaged"))
