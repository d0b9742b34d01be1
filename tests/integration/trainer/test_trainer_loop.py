"""The trainer on real stores: every rating archived once, fits published, commands carried out, nothing
lost on a restart.
"""

import asyncio
import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from factors import item_statistics
from featurestore.confirmation import Confirmation
from featurestore.errors import StoreUnavailable
from featurestore.generations.catalog import Generations
from featurestore.generations.follower import Follower
from featurestore.generations.manifest import Pointer
from featurestore.generations.served import wait_until_served
from featurestore.ratings.log import NewRating
from featurestore.settings import StoreSettings
from featurestore.store import Store
from tests.support.factories import low_rank_ratings as ratings
from tests.support.trainers import (
    archived,
    fitted,
    reopened,
    running_fits,
    running_trainer,
    started_fit,
    trainer_settings,
    until_drained,
    until_live,
)
from tests.support.waiting import wait_until_async
from trainer import refit
from trainer.app import Trainer
from trainer.errors import CannotStartError
from trainer.fit_job.job import FitRequest
from trainer.fit_job.process import fit_in_process
from trainer.fit_job.results import FitResult
from trainer.gate import Policy
from trainer.health import reporter
from trainer.schedule import Rules, Schedule
from trainer.settings import TrainerSettings

NAN = float("nan")


@pytest.fixture
def settings(store_settings: StoreSettings, tmp_path: Path) -> TrainerSettings:
    return trainer_settings(store_settings, tmp_path / "archive")


def pairs(of: list[NewRating]) -> list[tuple[str, str, float]]:
    return sorted((r.user_id.decode(), r.item_id.decode(), r.rating) for r in of)


async def test_ratings_reach_the_archive_once_and_leave_the_stream(
    store: Store, settings: TrainerSettings
) -> None:
    given = ratings()
    async with running_trainer(settings):
        for start in range(0, len(given), 50):
            await store.ratings.append(given[start : start + 50])
        await until_drained(store)
    found = archived(settings)
    assert sorted((user, item, rating) for user, _, item, rating in found) == pairs(given)
    assert len({(user, n) for user, n, _, _ in found}) == len(given)


async def test_something_is_live_at_once_and_a_refit_learns_everything(
    store: Store, settings: TrainerSettings
) -> None:
    given = ratings()
    async with running_trainer(settings):
        await until_live(store)
        await store.ratings.append(given)
        generation = await fitted(store)
        meta = await store.generations.meta(1, generation)
    assert meta.summary.n_users == 30
    assert meta.summary.n_ratings == len(given)
    assert meta.item_rows == 12
    for user_id in (b"u0", b"u29"):
        n, record = await store.redis.hmget(store.keys.user(1, user_id), "n", f"g{generation}")
        assert isinstance(n, bytes)
        assert isinstance(record, bytes)
        assert int(n) == int.from_bytes(record[:8], "little") == 9


@pytest.mark.slow
async def test_refit_after_so_many_events(store: Store, settings: TrainerSettings, tmp_path: Path) -> None:
    eager = trainer_settings(settings.store, tmp_path / "archive", rules=Rules(100, 10**6))
    async with running_trainer(eager):
        await store.ratings.append(ratings())
        await until_live(store, 2)
    summaries = await store.generations.list()
    assert summaries[-1].n_ratings == 270


async def test_a_refit_that_was_not_asked_for_leaves_a_core(
    store: Store, settings: TrainerSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[int] = []

    async def noted(request: FitRequest, *files: Any, **how: Any) -> FitResult:
        threads.append(request.threads)
        return await fit_in_process(request, *files, **how)

    monkeypatch.setattr(refit, "fit_in_process", noted)
    monkeypatch.setattr(refit, "usable_cores", lambda: 3)
    rules = Rules(100, 10**6, growth=0.0, share=1.0)
    given = ratings()
    async with running_trainer(trainer_settings(settings.store, tmp_path / "archive", rules=rules)):
        # The first is waited for.
        await store.ratings.append(given)
        await until_live(store, 2)
        await store.ratings.append(given)
        await until_live(store, 3)
        await fitted(store)
    assert threads == [3, 2, 3]
    few = trainer_settings(settings.store, tmp_path / "archive", rules=rules, fit_threads=2)
    async with running_trainer(few):
        await store.ratings.append(given)
        await until_live(store, 5)
    assert threads[3:] == [2]


async def test_refit_so_long_after_the_first(store: Store, settings: TrainerSettings, tmp_path: Path) -> None:
    eager = trainer_settings(settings.store, tmp_path / "archive", rules=Rules(10**9, 0.3))
    async with running_trainer(eager):
        await store.ratings.append(ratings())
        await until_live(store, 2)


async def test_only_a_fit_itself_counts_as_its_time(
    store: Store, settings: TrainerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that is away before or after it must not put the next one off."""
    ran: list[tuple[float, float]] = []
    reached: dict[str, float] = {}
    monkeypatch.setattr(Schedule, "ran", lambda _, began, ended: ran.append((began, ended)))
    async with running_trainer(settings, step=lambda name: reached.update({name: time.monotonic()})):
        await store.ratings.append(ratings())
        await fitted(store)
    began, ended = ran[-1]
    assert reached["fit:reached"] <= began < ended <= reached["fit:done"]


async def test_new_item_is_folded_in_within_a_second(
    store: Store, settings: TrainerSettings, tmp_path: Path
) -> None:
    follower, stop = Follower(store, tmp_path / "cache", "w1"), asyncio.Event()
    following = asyncio.create_task(follower.run(stop))
    async with running_trainer(settings):
        await store.ratings.append(ratings())
        generation = await fitted(store)
        assert await wait_until_served(store.generations, 1, generation, 10, here=follower)
        began_at = asyncio.get_running_loop().time()
        await store.ratings.append([NewRating(f"u{k}".encode(), b"fresh", 5.0, 1e9) for k in range(5)])

        async def known() -> bool:
            live = follower.live
            row = store.items(1).row(b"fresh")
            assert live is not None
            assert row is not None
            count = item_statistics(live.items[row : row + 1]).count
            return bool(len(count) and count[0] == 5)

        await wait_until_async(known, "the new item at the service")
        took_s = asyncio.get_running_loop().time() - began_at
        # The promise is one second; the machine that runs this test may be busy.
        assert took_s < 5
        live = follower.live
        assert live is not None
        assert live.activity is not None
        fresh, row = store.items(1).row(b"fresh"), store.items(1).row(b"i3")
        # It is what is rated most: everything else was rated when it was, too, and had fewer ratings since.
        activity = live.activity.at(2e9)
        assert fresh is not None
        assert int(activity.argmax()) == fresh
        assert activity[fresh] == 5
        assert activity[row] > 0
        await store.ratings.append([NewRating(b"late", b"i3", 1.0, 1e9), NewRating(b"u1", b"i3", NAN, 1e9)])
        assert row is not None
        before = item_statistics(live.items[row : row + 1]).count[0]

        async def changed() -> bool:
            assert follower.live is not None
            count = item_statistics(follower.live.items[row : row + 1]).count[0]
            return bool(count == (before if pair_known else before + 1))

        pair_known = any(r.user_id == b"u1" and r.item_id == b"i3" for r in ratings())
        await wait_until_async(changed, "the changed item at the service")
    stop.set()
    await following


@pytest.mark.slow
async def test_restart_knows_everything(store: Store, settings: TrainerSettings) -> None:
    async with running_trainer(settings):
        await store.ratings.append(ratings())
        first = await fitted(store)
        await store.ratings.append(ratings(prefix="late", seed=1))
        await until_drained(store)
    async with running_trainer(settings):
        second = await fitted(store)
        meta = await store.generations.meta(1, second)
    assert second > first
    assert meta.summary.n_users == 60
    assert meta.summary.n_ratings == 540


@pytest.mark.slow
async def test_new_epoch_end_to_end(store: Store, settings: TrainerSettings) -> None:
    async with running_trainer(settings):
        await store.ratings.append(ratings())
        await fitted(store)
        epoch = await store.epochs.begin()
        fresh = ratings(users=8, prefix="v", seed=2)
        await store.ratings.append(fresh, epoch=epoch)
        await store.ratings.append([NewRating(b"both", b"i1", 4.0, 1e9)])
        generation = await fitted(store, "epoch", epoch)
        pointer = await store.generations.live()
        assert (pointer.epoch, pointer.generation, pointer.pending) == (epoch, generation, 0)
        meta = await store.generations.meta(epoch, generation)
        assert meta.summary.n_users == 9
        n, history = await store.users.history(epoch, b"both")
        assert (n, len(history)) == (1, 1)

        async def gone() -> bool:
            folder = settings.archive_folder.parent / settings.store.namespace / "epoch-000001"
            left = [key async for key in store.redis.scan_iter(match=f"{settings.store.namespace}.1:*")]
            return not folder.exists() and not left

        await wait_until_async(gone, "the old epoch removed")
        assert len(archived(settings, epoch)) == len(fresh) + 1
        again = await fitted(store, "refit", epoch)
        assert again > generation


@pytest.mark.slow
async def test_a_history_that_begins_while_the_trainer_tidies_up_keeps_its_reader_and_its_archive(
    store: Store, settings: TrainerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_trainer(settings) as trainer:
        await until_live(store)
        term = trainer.term
        assert term is not None
        # It follows once as it begins, and reads nothing before it has.
        await wait_until_async(
            lambda: term.switch.live is not None and term.switch.live.epoch == 1,
            "the first generation is followed",
        )
        follow, began = term.switch.follow, asyncio.Queue[tuple[int, str]](1)

        async def begin_after(pointer: Pointer) -> None:
            await follow(pointer)
            monkeypatch.undo()
            epoch = await store.epochs.begin()
            await store.ratings.append(ratings(), epoch=epoch)
            command = await store.commands.ask("epoch", epoch=epoch)
            await wait_until_async(lambda: epoch in term.epochs.numbers(), "the new history is read")
            began.put_nowait((epoch, command))

        monkeypatch.setattr(term.switch, "follow", begin_after)
        epoch, command = await asyncio.wait_for(began.get(), 20)
        outcome = await store.commands.wait(command, 30)
        assert outcome is not None
        assert outcome.state == "done", outcome
        await until_drained(store, epoch)
        assert len(archived(settings, epoch)) == len(ratings())


async def test_abandoned_epoch_is_given_up(store: Store, settings: TrainerSettings, tmp_path: Path) -> None:
    hasty = trainer_settings(settings.store, tmp_path / "archive", abandon_s=1.0)
    async with running_trainer(hasty):
        await until_live(store)
        epoch = await store.epochs.begin()
        await store.ratings.append(ratings(), epoch=epoch)

        async def given_up() -> bool:
            return (await store.generations.live()).pending == 0

        await wait_until_async(given_up, "the new history given up")
        await store.ratings.append(ratings(users=3))
        await fitted(store)


async def test_a_pointer_is_followed_while_a_large_new_history_is_given_up(
    store: Store, settings: TrainerSettings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()
    remove = Generations.remove_epoch

    async def slow(self: Generations, *args: Any, **named: Any) -> None:
        begun.set()
        await go_on.wait()
        await remove(self, *args, **named)

    async with running_trainer(replace(settings, abandon_s=1.0)) as trainer:
        await store.ratings.append(ratings())
        first, second = await fitted(store), await fitted(store)
        term = trainer.term
        assert term is not None
        monkeypatch.setattr(Generations, "remove_epoch", slow)
        epoch = await store.epochs.begin()
        await store.ratings.append(ratings(), epoch=epoch)
        await asyncio.wait_for(begun.wait(), 20)
        for generation in (first, second):
            await store.generations.activate(generation, hold=False)

            def is_followed(wanted: int = generation) -> bool:
                return term.switch.live is not None and term.switch.live.generation == wanted

            await wait_until_async(is_followed, f"generation {generation} is followed")
        assert (await store.generations.live()).pending == epoch
        go_on.set()
        folder = settings.archive_folder.parent / settings.store.namespace / f"epoch-{epoch:06d}"
        await wait_until_async(lambda: not folder.exists(), "the new history in the trash")
        assert (await store.generations.live()).pending == 0
    assert "upkeep_failed" not in caplog.text


async def test_a_fit_whose_history_goes_to_the_trash_meanwhile_says_so(
    store: Store,
    settings: TrainerSettings,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    fit = fit_in_process
    async with running_trainer(settings):
        await until_live(store)
        epoch = await store.epochs.begin()
        folder = settings.archive_folder.parent / settings.store.namespace / f"epoch-{epoch:06d}"

        async def leave_and_fit(request: FitRequest, *files: Any, **how: Any) -> FitResult:
            await store.epochs.abandon(epoch)
            await wait_until_async(lambda: not folder.exists(), "the history in the trash")
            return await fit(request, *files, **how)

        monkeypatch.setattr(refit, "fit_in_process", leave_and_fit)
        await store.ratings.append(ratings(), epoch=epoch)
        command = await store.commands.ask("epoch", epoch=epoch)
        outcome = await store.commands.wait(command, 30)
        assert outcome is not None
        assert (outcome.state, outcome.code) == ("failed", "epoch_gone"), outcome
        # No alert comes of it.
        assert "fit_failed" not in caplog.text


async def test_erased_user_is_in_no_file_and_may_come_back(store: Store, settings: TrainerSettings) -> None:
    async with running_trainer(settings):
        await store.ratings.append([*ratings(), NewRating(b"secret-one", b"i1", 5.0, 1e9)])
        await fitted(store)
        await store.ratings.forget(b"secret-one")
        await store.ratings.append([NewRating(b"secret-one", b"i2", 2.0, 1e9)])
        command = await store.commands.ask("erase", epoch=1, user=b"secret-one")
        outcome = await store.commands.wait(command, 30)
        assert outcome is not None
        assert outcome.state == "done", outcome
    assert [(item, rating) for user, _, item, rating in archived(settings) if user == "secret-one"] == [
        ("i2", 2.0)
    ]
    names = [path for path in settings.archive_folder.parent.rglob("id_bytes.npy")]  # noqa: C416
    assert names
    assert not any(b"secret-one" in path.read_bytes() for path in names)


@pytest.mark.slow
async def test_forgotten_is_released_when_no_generation_has_seen_the_user(
    store: Store, settings: TrainerSettings
) -> None:
    async with running_trainer(settings):
        await store.ratings.append(ratings())
        await fitted(store)
        await store.ratings.forget(b"u3")
        assert len(await store.ratings.forgotten(1)) == 1
        await fitted(store)
        await fitted(store)

        async def released() -> bool:
            return not await store.ratings.forgotten(1)

        await wait_until_async(released, "the forgotten user released")
    meta = await store.generations.meta(1, (await store.generations.live()).generation)
    assert meta.summary.n_users == 29


@pytest.mark.slow
async def test_lost_archive_is_rebuilt_from_the_histories(
    store: Store, settings: TrainerSettings, tmp_path: Path
) -> None:
    given = [*ratings(), NewRating(b"u1", b"i1", 1.0, 2e9), NewRating(b"u2", b"i2", NAN, 2e9)]
    async with running_trainer(settings):
        await store.ratings.append(given)
        await fitted(store)
    elsewhere = trainer_settings(settings.store, tmp_path / "elsewhere")
    async with running_trainer(elsewhere):
        generation = await fitted(store)
        await store.ratings.append([NewRating(b"new", b"i1", 2.0, 2e9)])
        await until_drained(store)
        meta = await store.generations.meta(1, generation)
    effective = {(r.user_id, r.item_id): r.rating for r in given}
    assert meta.summary.n_ratings == sum(rating == rating for rating in effective.values())  # noqa: PLR0124 - not NaN
    assert ("new", 1, "i1", 2.0) in archived(elsewhere)
    # The first host comes back with an archive that missed something: it is rebuilt as well.
    async with running_trainer(settings):
        await fitted(store)
    assert any(user == "new" for user, *_ in archived(settings))


async def test_damaged_segment_is_set_aside_and_rebuilt(store: Store, settings: TrainerSettings) -> None:
    async with running_trainer(settings):
        await store.ratings.append(ratings())
        await until_drained(store)
    victim = reopened(settings).snapshot().paths[0]
    content = bytearray(victim.read_bytes())
    content[len(content) // 3] ^= 1
    victim.write_bytes(content)
    async with running_trainer(settings):
        generation = await fitted(store)
        meta = await store.generations.meta(1, generation)
    assert meta.summary.n_ratings == 270
    assert victim.with_name(victim.name + ".damaged").exists()


@pytest.mark.slow
async def test_held_generation_is_not_replaced_unasked(
    store: Store, settings: TrainerSettings, tmp_path: Path
) -> None:
    eager = trainer_settings(settings.store, tmp_path / "archive", rules=Rules(10, 10**6))
    async with running_trainer(eager):
        await store.ratings.append(ratings())
        first = await fitted(store)
        second = await fitted(store)
        await store.generations.activate(first, hold=True)
        await store.ratings.append(ratings(prefix="w"))
        await until_drained(store)
        assert (await store.generations.live()).generation == first
        third = await fitted(store)
        pointer = await store.generations.live()
        assert (pointer.generation, pointer.held) == (third, False)
        assert third > second


async def test_a_rating_off_the_scale_is_not_archived(store: Store, settings: TrainerSettings) -> None:
    """No call can have written it. In the archive it would let every fit fail."""
    given = ratings()
    async with running_trainer(settings):
        await store.ratings.append(given)
        generation = await fitted(store)
    await store.ratings.append([NewRating(b"u1", b"i1", 77.0, 1e9)])
    with pytest.raises(CannotStartError, match=r"ratings: entry .* is not what was written"):
        await asyncio.wait_for(Trainer(settings).run(asyncio.Event()), 30)
    assert (await store.generations.live()).generation == generation
    assert len(archived(settings)) == len(given)


async def test_items_that_no_replica_confirmed_are_pushed_again(
    store: Store, settings: TrainerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    pushes, push = [0], Generations.push_delta

    async def pushed(*args: Any, **more: Any) -> None:
        await push(*args, **more)
        pushes[0] += 1

    async def wait(_: Confirmation, __: object) -> None:
        if pushes == [1]:
            raise StoreUnavailable("the store's replicas did not confirm the write in time")

    async with running_trainer(settings):
        await store.ratings.append(ratings())
        await fitted(store)
        monkeypatch.setattr(Generations, "push_delta", pushed)
        monkeypatch.setattr(Confirmation, "wait", wait)
        await store.ratings.append([NewRating(b"u1", b"fresh", 5.0, 1e9)])
        await wait_until_async(lambda: pushes[0] > 1, "the item is pushed again")


@pytest.mark.slow
async def test_implicit_engine_goes_live_and_users_are_folded_in(
    store: Store, settings: TrainerSettings, tmp_path: Path
) -> None:
    implicit = trainer_settings(settings.store, tmp_path / "archive", engine="implicit")
    follower, stop = Follower(store, tmp_path / "cache", "w1"), asyncio.Event()
    following = asyncio.create_task(follower.run(stop))
    async with running_trainer(implicit):
        await store.ratings.append(ratings(users=60, items=20))
        generation = await fitted(store)
        assert await wait_until_served(store.generations, 1, generation, 10, here=follower)
        live = follower.live
        assert live is not None
        await store.ratings.append(
            [NewRating(b"late", b"i1", 5.0, 1e9), NewRating(b"late", b"fresh", 5.0, 1e9)]
        )
        current = await store.users.current(live, [b"late", b"u1", b"unknown"])
        assert current.n.tolist() == [2, 9, 0]
        assert current.folded.tolist() == [True, False, False]
        row = store.items(1).row(b"i1")
        assert row is not None
        scores = live.scorer.score(current.vectors, np.array([0, 2]), np.array([row, row]))
        assert scores.rating[0] > scores.rating[1]
        await store.ratings.append(ratings(users=5, items=25, prefix="more"))
        again = await fitted(store)
        meta = await store.generations.meta(1, again)
    stop.set()
    await following
    assert meta.summary.engine == "implicit"
    assert meta.summary.n_users == 66


async def test_unknown_command_is_told_so(store: Store, settings: TrainerSettings) -> None:
    async with running_trainer(settings):
        command = await store.commands.ask("dance", epoch=1)  # type: ignore[arg-type]  # on purpose
        outcome = await store.commands.wait(command, 20)
    assert outcome is not None
    assert (outcome.state, outcome.code) == ("failed", "unknown_command")


@pytest.mark.fit_process
async def test_killed_fit_fails_the_command_and_the_next_one_works(
    store: Store, settings: TrainerSettings
) -> None:
    killed: list[int] = []

    def step(name: str) -> None:
        if name == "fit:started" and not killed:
            killed.append(started_fit())
            os.kill(killed[0], signal.SIGKILL)

    async with running_trainer(settings, step=step):
        await until_live(store)
        await store.ratings.append(ratings())
        command = await store.commands.ask("refit", epoch=1)
        outcome = await store.commands.wait(command, 30)
        assert outcome is not None
        assert (outcome.state, outcome.code) == ("failed", "fit_failed")
        assert outcome.detail is not None
        assert "signal 9" in outcome.detail
        await fitted(store)


@pytest.mark.fit_process
@pytest.mark.slow
async def test_a_fit_that_was_due_gives_way_to_one_that_was_asked_for(
    store: Store, settings: TrainerSettings, tmp_path: Path
) -> None:
    eager = trainer_settings(settings.store, tmp_path / "archive", rules=Rules(10, 10**6))
    async with running_trainer(eager):
        await until_live(store)
        await store.ratings.append(ratings())
        await wait_until_async(lambda: running_fits(os.getpid()), "a fit runs")
        (stopped,) = running_fits(os.getpid())
        # It would never end by itself.
        os.kill(stopped, signal.SIGSTOP)
        generation = await fitted(store)
        meta = await store.generations.meta(1, generation)
    assert meta.summary.n_ratings == 270
    with pytest.raises(ProcessLookupError):
        os.kill(stopped, 0)


@pytest.mark.slow
async def test_ratings_that_become_harder_to_foretell_do_not_hold_the_old_generation(
    store: Store, settings: TrainerSettings
) -> None:
    rng = np.random.default_rng(3)

    def wave(noise: float, first_item: int) -> list[NewRating]:
        pairs = [(user, item) for user in range(60) for item in rng.permutation(60)[:45]]
        values = [3 + (-1) ** user * (-1) ** item + rng.normal(0, noise) for user, item in pairs]
        return [
            NewRating(f"u{u}".encode(), f"i{first_item + i}".encode(), float(np.clip(value, 1, 5)), 1e9)
            for (u, i), value in zip(pairs, values, strict=True)
        ]

    async with running_trainer(settings):
        await until_live(store)
        await store.ratings.append(wave(0.02, 0))
        await fitted(store)
        await store.ratings.append(wave(0.8, 1000))
        meta = await store.generations.meta(1, await fitted(store))
    # Harder for the generation before as well, on the same ratings.
    assert meta.summary.metrics["newest"] == 270
    assert meta.summary.metrics["live_ratio"] < 1.0


# Four fits, a process each: 70 s where seven other processes want each core.
@pytest.mark.slow
@pytest.mark.timeout(240)
async def test_a_fit_that_a_flood_of_accounts_has_spoiled_does_not_go_live(
    store: Store, settings: TrainerSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reporter, "EVERY_S", 0.05)
    flood = [NewRating(b"bot%d" % bot, b"i%d" % item, 5.0, 1e9) for bot in range(100) for item in range(24)]

    async def refit() -> str | None:
        outcome = await store.commands.wait(await store.commands.ask("refit", epoch=1), 60)
        assert outcome is not None
        return outcome.code

    async with running_trainer(settings) as trainer, reporter.reporting(trainer):
        await until_live(store)
        await store.ratings.append(ratings(users=100, items=24, prefix="u"))
        generation = await fitted(store)
        await store.ratings.append(flood)
        await until_drained(store)
        await store.ratings.append(ratings(users=100, items=24, prefix="new")[::3])
        # The second one begins from nothing, and is no better.
        assert [await refit(), await refit()] == ["gate_refused", "gate_refused"]
        # The page shows why, until one goes live.
        await asyncio.sleep(0.2)
        assert (await store.telemetry.read(1))[-1].failed.startswith("gate_refused: ")
        assert (await store.generations.live()).generation == generation
    # Without the comparison it would go live.
    lax = trainer_settings(settings.store, tmp_path / "archive", gate=Policy(baseline=9.0, live=9.0))
    async with running_trainer(lax):
        assert await fitted(store) > generation
