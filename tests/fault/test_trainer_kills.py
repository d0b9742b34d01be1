"""Trainers that are killed at a named step, frozen, or cut off: the next one finds everything, once,
and a whole generation.
"""

import asyncio
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest

from featurestore.ratings.batches import Columns
from featurestore.ratings.log import NewRating
from featurestore.settings import StoreSettings
from featurestore.store import Store
from tests.support.trainers import (
    ChildTrainer,
    archived,
    fitted,
    running_fits,
    running_trainer,
    trainer_settings,
    until_drained,
)
from tests.support.waiting import wait_until
from trainer.settings import TrainerSettings

pytestmark = [pytest.mark.slow, pytest.mark.fault]

STEPS = [
    ("consume:read", 1),
    ("segment:written", 2),
    ("segment:renamed", 2),
    ("consume:archived", 2),
    ("consume:done", 1),
    ("publish:begun", 1),
    ("publish:finished", 1),
    ("fit:started", 1),
    ("fit:done", 1),
    ("publish:begun", 2),
    ("publish:items", 2),
    ("publish:some_users", 1),
    ("publish:finished", 2),
    ("publish:flipped", 2),
    ("items:push", 1),
]


@pytest.fixture
def settings(store_settings: StoreSettings, tmp_path: Path) -> TrainerSettings:
    return trainer_settings(store_settings, tmp_path / "archive", lease_ttl_s=2.0)


def ratings(seed: int, users: int = 25) -> list[NewRating]:
    rng = np.random.default_rng(seed)
    return [
        NewRating(f"u{user}".encode(), f"i{item}".encode(), float(rng.integers(1, 6)), 1e9 + seed)
        for user in range(users)
        for item in rng.permutation(10)[:4]
    ]


def viewed(rated: list[NewRating]) -> Columns:
    """A view of each item that is rated."""
    users, items = [each.user_id for each in rated], [each.item_id for each in rated]
    size = len(rated)
    return Columns(users, items, np.ones(size), np.full(size, 1e9), np.full(size, 1, dtype=np.uint8))


async def live_is_whole(store: Store) -> None:
    """Whatever is live was written completely."""
    pointer = await store.generations.live()
    if pointer.generation:
        meta = await store.generations.meta(pointer.epoch, pointer.generation)
        assert meta.summary.state == "ready"
        table = b"".join([piece async for piece in store.generations.load_items(meta)])
        assert (len(table), crc32(table)) == (4 * meta.item_rows * meta.model.item_width, meta.crc32)


@pytest.mark.parametrize(("step", "occurrence"), STEPS)
async def test_killed_at_a_step(store: Store, settings: TrainerSettings, step: str, occurrence: int) -> None:
    given = ratings(0)
    views: list[NewRating] = []
    await store.ratings.append(given)
    command = await store.commands.ask("refit", epoch=1)
    child = ChildTrainer(settings, step, occurrence)
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
    async with running_trainer(settings):
        outcome = await store.commands.wait(command, 60)
        assert outcome is not None
        assert outcome.state == "done", outcome
        await until_drained(store)
        generation = await fitted(store)
        await live_is_whole(store)
        meta = await store.generations.meta(1, generation)
        states = {summary.state for summary in await store.generations.list()}
    counts = Counter(rating.user_id.decode() for rating in [*given, *views])
    found = archived(settings)
    assert sorted((user, n) for user, n, _, _ in found) == sorted(
        (user, n) for user, count in counts.items() for n in range(1, count + 1)
    )
    assert meta.summary.n_ratings == len({(rating.user_id, rating.item_id) for rating in given})
    assert states == {"ready"}


async def test_fit_ends_with_its_parent(store: Store, settings: TrainerSettings) -> None:
    await store.ratings.append(ratings(0))
    await store.commands.ask("refit", epoch=1)
    child = ChildTrainer(settings, "fit:started")

    try:
        wait_until(lambda: child.ended, "the trainer killed")
    finally:
        child.end()
    await asyncio.to_thread(
        wait_until, lambda: not running_fits(child.process.pid), "the fit gone with its trainer"
    )


def run(
    environment: dict[str, str], how: signal.Signals | None = None, ready: str = "leading"
) -> tuple[int, str]:
    """`python -m trainer` until it ends, or until a signal after the line that says `ready`."""
    process = subprocess.Popen(
        [sys.executable, "-m", "trainer"],
        env={**os.environ, **environment},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    lines = []
    try:
        if how is not None:
            for line in process.stderr:
                lines.append(line)
                if ready in line:
                    break
            process.send_signal(how)
        _, rest = process.communicate(timeout=40)
    finally:
        process.kill()
        process.wait()
    return process.returncode, "".join(lines) + rest
