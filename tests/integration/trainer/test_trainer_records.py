"""Records of many users, written by a process that gives way; and by the trainer where that one fails."""

import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from typing import Any

import numpy as np
import pytest

from featurestore.codecs import unpack_records
from featurestore.errors import EpochGone, GenerationBroken, StoreUnavailable
from featurestore.generations.catalog import GenerationMeta, GenerationWriter
from featurestore.keys import record_field
from featurestore.store import Store
from tests.support.factories import lead, make_items, make_model, rating
from trainer.fit_job.results import FitResult, fit_in_memory
from trainer.publication import publish as publisher
from trainer.publication import record_process
from trainer.publication.publish import Published, Publisher
from trainer.threads import Threads

# Three batches of a few calls each: on a busy machine a process that gives way waits for a core at each call.
USERS = 60
USERS_AT_ONCE = 24
# Less than the timeout of a test.
PATIENT_S = 100.0
MODEL = make_model()


@pytest.fixture(autouse=True)
def several_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the records written in more than one batch."""
    monkeypatch.setattr(publisher, "_USERS_AT_ONCE", USERS_AT_ONCE)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[record_process.RecordProcess]:
    """The processes that were started, in order."""
    found: list[record_process.RecordProcess] = []

    @contextlib.asynccontextmanager
    async def watched(*args: Any, **options: Any) -> AsyncIterator[record_process.RecordProcess]:
        async with record_process.record_process(*args, **options) as running:
            found.append(running)
            yield running

    monkeypatch.setattr(publisher, "record_process", watched)
    return found


def fitted(users: int = USERS) -> FitResult:
    """A fit whose tables are in memory. The last user is one who was erased from it."""
    ids = [b"u%d" % user for user in range(users - 1)] + [b"\xff\xff"]
    vectors = np.random.default_rng(1).standard_normal((users, MODEL.user_width)).astype(np.float32)
    return fit_in_memory(MODEL, vectors, make_items(MODEL, 3), ids)


async def published(
    store: Store, result: FitResult, step: Callable[[str], None], epoch: int = 1
) -> Published:
    """Publish it for users who have rated once."""
    await store.ratings.append([rating(f"u{user}", "a") for user in range(USERS - 1)])
    publishing = Publisher(store, await lead(store), Threads(), step=step, apart_from=20)
    return await publishing.publish(
        epoch, result, engine="variational", positions={}, folder=None, automatic=True
    )


async def check_records(store: Store, result: FitResult, number: int) -> None:
    """Every user who was not erased has the row of the fit."""
    field = record_field(number)
    pipe = store.redis.pipeline(transaction=False)
    for user_id in result.user_ids(0, USERS - 1):
        pipe.hget(store.keys.user(1, user_id), field.decode())
    n, vectors = unpack_records(await pipe.execute(), MODEL.user_width)
    assert n.tolist() == [1] * (USERS - 1)
    np.testing.assert_array_equal(vectors, result.users[:-1])


async def test_a_process_that_gives_way_writes_the_records_of_many(
    store: Store, started: list[record_process.RecordProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    # It runs only when no other process does: on a busy machine it may wait for a core as long as it takes.
    monkeypatch.setattr(record_process, "START_S", PATIENT_S)
    monkeypatch.setattr(record_process, "PATIENCE_S", PATIENT_S)
    policies: list[int] = []

    def step(name: str) -> None:
        if name == "publish:some_users" and hasattr(os, "sched_getscheduler"):
            policies.append(os.sched_getscheduler(started[0].pid))

    result = fitted()
    done = await published(store, result, step)
    assert done.live
    await check_records(store, result, done.meta.summary.generation)
    assert len(started) == 1
    with pytest.raises(ProcessLookupError):
        os.kill(started[0].pid, 0)
    if sys.platform == "linux":
        assert set(policies) == {os.SCHED_IDLE}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_where_that_process_dies_the_trainer_writes_the_rest(
    store: Store, started: list[record_process.RecordProcess], number: signal.Signals
) -> None:
    def step(name: str) -> None:
        if name == "publish:some_users":
            with contextlib.suppress(ProcessLookupError):
                os.kill(started[0].pid, number)

    result = fitted()
    done = await published(store, result, step)
    assert done.live
    await check_records(store, result, done.meta.summary.generation)


async def test_where_it_is_too_slow_the_trainer_writes_the_rest(
    store: Store, started: list[record_process.RecordProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record_process, "PATIENCE_S", 0.2)

    def step(name: str) -> None:
        if name == "publish:some_users":
            with contextlib.suppress(ProcessLookupError):
                os.kill(started[0].pid, signal.SIGSTOP)

    result = fitted()
    done = await published(store, result, step)
    assert done.live
    await check_records(store, result, done.meta.summary.generation)
    with pytest.raises(ProcessLookupError):
        os.kill(started[0].pid, 0)


async def test_where_it_does_not_start_the_trainer_writes_all(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    result = fitted()
    done = await published(store, result, lambda _: None)
    assert done.live
    await check_records(store, result, done.meta.summary.generation)


async def test_rows_that_are_not_finite_are_refused_there_too(
    store: Store, started: list[record_process.RecordProcess]
) -> None:
    result = fitted()
    result.users[USERS - 2, 0] = np.nan
    with pytest.raises(GenerationBroken, match="finite"):
        await published(store, result, lambda _: None)
    assert await store.generations.list() == []
    assert len(started) == 1


@pytest.mark.parametrize("how", ["given up", "replaced"])
async def test_a_history_that_leaves_meanwhile_is_not_damaged(
    store: Store, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Its removal takes the table away that is being read back."""
    epoch = await store.epochs.begin() if how == "given up" else 1
    finish = GenerationWriter.finish

    async def leave_and_finish(self: GenerationWriter) -> GenerationMeta:
        if how == "given up":
            await store.epochs.abandon(epoch)
        else:
            await store.redis.hset(store.keys.live, mapping={"epoch": "2", "generation": "0"})
            await store.generations.remove_epoch(1)
        return await finish(self)

    monkeypatch.setattr(GenerationWriter, "finish", leave_and_finish)
    with pytest.raises(EpochGone, match=f"history of epoch {epoch} was replaced or given up"):
        await published(store, fitted(10), lambda _: None, epoch)


async def test_a_table_that_was_taken_away_from_a_live_history_is_damage(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish = GenerationWriter.finish

    async def lose_and_finish(self: GenerationWriter) -> GenerationMeta:
        await store.redis.unlink(store.keys.chunk(1, self.number, 0))
        return await finish(self)

    monkeypatch.setattr(GenerationWriter, "finish", lose_and_finish)
    with pytest.raises(GenerationBroken, match="items:0"):
        await published(store, fitted(10), lambda _: None)


async def test_nothing_is_written_under_a_number_that_was_not_confirmed(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A replica that is promoted without it would give it again."""
    steps: list[str] = []

    async def unconfirmed(_since: object) -> None:
        raise StoreUnavailable("the store's replicas did not confirm the write in time")

    publishing = Publisher(store, await lead(store), Threads(), step=steps.append)
    with monkeypatch.context() as patch:
        patch.setattr(store.confirmation, "wait", unconfirmed)
        with pytest.raises(StoreUnavailable):
            await publishing.publish(
                1, fitted(), engine="variational", positions={}, folder=None, automatic=True
            )
    assert steps == ["publish:begin"]
    (begun,) = await store.generations.list()
    assert not await store.redis.exists(store.keys.meta(1, begun.generation))
