"""The trainer on real stores: ratings are archived once, fits published, commands carried out."""

import asyncio
import os
import signal
from dataclasses import replace
from operator import not_
from pathlib import Path
from typing import Any

import pytest

from factors import item_statistics
from featurestore.generations.served import wait_until_served
from featurestore.ratings.log import NewRating
from featurestore.settings import StoreSettings
from featurestore.store import Store
from foldin.sinks import Row, StoreSink
from tests.integration.conftest import Learned
from tests.support.factories import keys_of, low_rank_ratings, rating
from tests.support.following import following
from tests.support.recovering import GIVEN, LATER, now_held, opened
from tests.support.trainers import (
    archived,
    fitted,
    outcome_of,
    reopened,
    running_fits,
    running_trainer,
    started_fit,
    until_drained,
    until_live,
)
from tests.support.waiting import some, wait_until_async
from trainer import refit
from trainer.archive.item_list import read_items
from trainer.archive.root import ArchiveRoot
from trainer.fit_job.job import FitRequest
from trainer.fit_job.process import fit_in_process
from trainer.fit_job.results import FitResult
from trainer.gate import Policy
from trainer.health import reporter, signs
from trainer.schedule import Rules
from trainer.settings import TrainerSettings

NAN = float("nan")
pytestmark = pytest.mark.usefixtures("quick_rounds")


def pairs(of: list[NewRating]) -> list[tuple[str, str, float]]:
    return sorted((r.user_id.decode(), r.item_id.decode(), r.rating) for r in of)


async def test_ratings_are_learned_and_stay(store: Store, settings: TrainerSettings, tmp_path: Path) -> None:
    given = GIVEN
    async with following(store, tmp_path / "cache") as follower:

        def statistics(item: bytes) -> float:
            row = some(store.items(1).row(item))
            count = item_statistics(some(follower.live).items[row : row + 1]).count
            return float(count[0]) if len(count) else 0.0

        async with running_trainer(settings):
            # Something is live before there is any rating.
            await until_live(store)
            for start in range(0, len(given), 50):
                await store.ratings.append(given[start : start + 50])
            await until_drained(store)
            found = archived(settings)
            assert sorted((user, item, value) for user, _, item, value in found) == pairs(given)
            assert len({(user, n) for user, n, _, _ in found}) == len(given)
            first = await fitted(store)
            summary = (await store.generations.meta(1, first)).summary
            assert (summary.n_users, summary.n_items, summary.n_ratings) == (10, 12, len(given))
            n, record = await store.redis.hmget(store.keys.user(1, b"u9"), "n", f"g{first}")
            assert isinstance(n, bytes)
            assert isinstance(record, bytes)
            assert int(n) == int.from_bytes(record[:8], "little") == 9
            assert await wait_until_served(store.generations, 1, first, 100, here=follower)
            # A new item reaches services by its ratings, without a fit; a known one changes.
            before = statistics(b"i3")
            await store.ratings.append([NewRating(f"u{k}".encode(), b"fresh", 5.0, 1e9) for k in range(5)])
            await store.ratings.append([NewRating(b"late", b"i3", 1.0, 1e9)])
            await wait_until_async(lambda: store.items(1).row(b"fresh"), "the new item has a row")
            after = (5, before + 1)
            await wait_until_async(lambda: (statistics(b"fresh"), statistics(b"i3")) == after, "folded in")
            unknown = await store.commands.ask("dance", epoch=1)  # type: ignore[arg-type]  # on purpose
            outcome = await outcome_of(store, unknown)
            assert (outcome.state, outcome.code) == ("failed", "unknown_command")
        async with running_trainer(settings):
            second = await fitted(store)
            meta = await store.generations.meta(1, second)
    assert (second > first, meta.summary.n_users, meta.summary.n_ratings) == (True, 11, len(given) + 6)


async def test_refits_come_by_themselves_and_leave_a_core_and_a_held_generation_alone(
    store: Store, settings: TrainerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[int] = []

    async def noted(request: FitRequest, *files: Any, **how: Any) -> FitResult:
        threads.append(request.threads)
        return await fit_in_process(request, *files, **how)

    monkeypatch.setattr(refit, "fit_in_process", noted)
    monkeypatch.setattr(refit, "usable_cores", lambda: 3)
    async with running_trainer(replace(settings, rules=Rules(80, 10**6, growth=0.0, share=1.0))):
        # The first is waited for.
        await store.ratings.append(GIVEN)
        await until_live(store, 2)
        await store.ratings.append(LATER)
        await until_live(store, 3)
        assert (await store.generations.list())[-1].n_ratings == len(GIVEN) + len(LATER)
        await store.generations.activate(2, hold=True)
        await store.ratings.append(low_rank_ratings(users=10, prefix="w"))
        await until_drained(store)
        assert (await store.generations.live()).generation == 2
        third = await fitted(store)
        assert third > 3
        pointer = await store.generations.live()
        assert (pointer.generation, pointer.held) == (third, False)
    assert threads == [3, 2, 3]
    # By time, too.
    async with running_trainer(replace(settings, rules=Rules(10**9, 0.05, share=1.0))) as trainer:
        await store.ratings.append([rating("u1", "i1")])
        await until_live(store, third + 1)
        # A file that is imported again says nothing new.
        for _ in range(2):
            await store.ratings.append([replace(each, time=5e8) for each in GIVEN])
            await until_drained(store)
            await until_live(store, third + 2)
        schedule, seen = some(trainer.term).refitter.schedule, len(archived(settings))
        await wait_until_async(lambda: schedule.learned_events == seen, "it is seen that nothing is new")
        assert (await store.generations.live()).generation == third + 2


async def test_the_first_fit_waits_for_the_end_of_an_import_and_knows_all_of_it(
    store: Store, store_settings: StoreSettings, settings: TrainerSettings
) -> None:
    opened = await Store.open(store_settings, hot=False)
    sink = StoreSink(opened, "the store", 1)
    rows: list[Row] = [(r.user_id, r.item_id, r.rating, r.time, None, None) for r in (*GIVEN, *LATER)]
    async with running_trainer(replace(settings, rules=Rules(10, 0.05, share=1.0))) as trainer:
        await until_live(store)
        await sink.write(rows[: len(GIVEN)])
        await until_drained(store)
        schedule = some(trainer.term).refitter.schedule

        def paused() -> bool:
            return schedule.first_new_at is not None and schedule.lately < 10

        await wait_until_async(paused, "the import pauses for so long that a fit would be due")
        assert (await store.generations.live()).generation == 1
        await sink.write(rows[len(GIVEN) :])
        await until_drained(store)
        await sink.close()
        await until_live(store, 2)
        assert (await store.generations.list())[-1].n_ratings == len(rows)


async def test_a_history_is_replaced_as_a_whole_and_the_one_before_is_whole_in_the_trash(
    store: Store, settings: TrainerSettings
) -> None:
    acknowledged: list[NewRating] = []

    def entries() -> list[Path]:
        return [path.parent for path in settings.archive_folder.glob("trash/epoch-*Z/trash.json")]

    # A trainer that reads seldom.
    async with running_trainer(replace(settings, linger_s=1.0)):
        await store.ratings.append(GIVEN)
        await store.items(1).register([b"never rated"])
        first = await fitted(store)
        epoch = await store.epochs.begin()
        await store.ratings.append(LATER, epoch=epoch)
        replacing, of_both = asyncio.create_task(fitted(store, "epoch", epoch)), 0
        while not replacing.done():
            now = [rating(f"late{len(acknowledged)}", f"i{len(acknowledged) % 12}", 4.0)]
            await store.ratings.append(now)
            acknowledged += now
            if (await store.generations.live()).epoch == 1:
                of_both = len(acknowledged)
            await asyncio.sleep(0.01)
        generation = await replacing
        pointer = await store.generations.live()
        assert (pointer.epoch, pointer.generation, pointer.pending) == (epoch, generation, 0)
        await wait_until_async(entries, "the first history in the trash")
        await wait_until_async(lambda: keys_of(store, ".1:*"), "the first history gone from the store", not_)
        await wait_until_async(store.generations.epochs, "and forgotten", lambda epochs: epochs == {epoch})
        told = [r for r in acknowledged if (await store.users.history(epoch, r.user_id))[0]]
        assert told == acknowledged, "what came in after the call began is in the new history"
        await until_drained(store, epoch)
        assert {(u, i, r) for u, _, i, r in archived(settings, epoch)} >= {*pairs(LATER + acknowledged)}
        assert await fitted(store, "refit", epoch) > generation > first
    (entry,) = ArchiveRoot(settings.archive_folder, guard=lambda: None).trash.entries()
    assert (entry.why, entry.epoch) == ("replaced", 1)
    in_trash = {(u, i, r) for u, _, i, r in archived(settings, path=entry.path)}
    # Those that came after the switch went to the new history only.
    assert {*pairs(GIVEN + acknowledged[:of_both])} <= in_trash
    assert "never rated" in read_items(entry.path / "items.list").to_pylist()
    # Its days are over.
    async with running_trainer(replace(settings, trash_days=0.0)):
        await wait_until_async(lambda: not entries(), "the trash emptied")


@pytest.mark.parametrize("what", ["lost", "flipped", "older"])
async def test_an_archive_that_lacks_something_is_remade(learned: Learned, tmp_path: Path, what: str) -> None:
    settings, folder = learned.settings, learned.settings.archive_folder / "epoch-000001"
    victim = reopened(settings).snapshot().paths[0]
    if what == "lost":
        for path in folder.glob("*.parquet"):
            path.unlink()
    elif what == "flipped":
        content = bytearray(victim.read_bytes())
        content[len(content) // 3] ^= 1
        victim.write_bytes(content)
    async with opened(settings.store) as store:
        if what == "older":
            # Another host led meanwhile, with an archive of its own.
            async with running_trainer(replace(settings, archive_dir=tmp_path / "elsewhere")):
                await store.ratings.append([rating("u1", "i1", NAN), rating("new", "i1", 2.0)])
                await until_drained(store)
        async with running_trainer(settings):
            meta = await store.generations.meta(1, await fitted(store))
    held = await now_held(settings)
    assert meta.summary.n_ratings == len(held)
    assert (held == learned.held) is (what != "older")
    assert {(user, item) for user, _, item, value in archived(settings) if value == value} >= held.keys()  # noqa: PLR0124
    assert victim.with_name(victim.name + ".damaged").exists() is (what == "flipped")


@pytest.mark.fit_process
@pytest.mark.slow
async def test_a_killed_fit_fails_its_command_and_one_that_hangs_gives_way(learned: Learned) -> None:
    killed: list[int] = []

    def step(name: str) -> None:
        if name == "fit:started" and not killed:
            killed.append(started_fit())
            os.kill(killed[0], signal.SIGKILL)

    settings = learned.settings
    async with opened(settings.store) as store:
        async with running_trainer(settings, step=step):
            outcome = await outcome_of(store, await store.commands.ask("refit", epoch=1))
            assert (outcome.state, outcome.code) == ("failed", "fit_failed")
            assert "signal 9" in str(outcome.detail)
            await fitted(store)
        async with running_trainer(replace(settings, rules=Rules(10, 10**6))):
            await store.ratings.append(LATER)
            await wait_until_async(lambda: running_fits(os.getpid()), "a fit runs that was not asked for")
            (stopped,) = running_fits(os.getpid())
            # It would never end by itself.
            os.kill(stopped, signal.SIGSTOP)
            meta = await store.generations.meta(1, await fitted(store))
        assert meta.summary.n_ratings == len(GIVEN) + len(LATER)
        with pytest.raises(ProcessLookupError):
            os.kill(stopped, 0)


async def test_a_fit_that_the_gate_refuses_does_not_go_live_and_the_page_shows_why(
    learned: Learned, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which fits these are: tests/unit/trainer/test_trainer_parts.py."""
    monkeypatch.setattr(reporter, "EVERY_S", 0.02)
    # Clocks always differ by more than that: the page has this, too.
    monkeypatch.setattr(signs, "_CLOCK_S", -1.0)
    strict = replace(learned.settings, gate=Policy(baseline=-1.0, enough=0))
    async with opened(strict.store) as store:
        live = (await store.generations.live()).generation
        async with running_trainer(strict) as trainer, reporter.reporting(trainer):
            for _ in range(2):
                # The second one begins from nothing, and is no better.
                outcome = await outcome_of(store, await store.commands.ask("refit", epoch=1))
                assert outcome.code == "gate_refused", outcome
            await wait_until_async(
                lambda: store.telemetry.read(60),
                "the page shows why",
                lambda points: points and points[-1].failed.startswith("gate_refused: "),
            )
            (*_, last) = await store.telemetry.read(60)
            assert "clocks" in last.wrong["FoldinClock"]
            assert (await store.generations.live()).generation == live
        async with running_trainer(learned.settings):
            assert await fitted(store) > live
