"""Records of many users, written by a process that gives way; and by the trainer where that one fails."""

import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest

from featurestore.codecs import unpack_records
from featurestore.keys import record_field
from featurestore.store import Store
from tests.support.factories import lead, make_items, make_model, rating
from tests.support.waiting import PATIENCE_S
from trainer.fit_job.results import fit_in_memory
from trainer.publication import publish as publisher
from trainer.publication import recording
from trainer.publication.publish import Publisher
from trainer.threads import Threads

# Three batches of a few calls each: on a busy machine a process that gives way waits for a core at each call.
USERS = 60
USERS_AT_ONCE = 24
HOW = ("lives", "is killed")
MODEL = make_model()


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[recording.RecordProcess]:
    monkeypatch.setattr(publisher, "_USERS_AT_ONCE", USERS_AT_ONCE)
    # It runs only when no other process does.
    monkeypatch.setattr(recording, "START_S", PATIENCE_S)
    monkeypatch.setattr(recording, "PATIENCE_S", PATIENCE_S)
    found: list[recording.RecordProcess] = []

    @contextlib.asynccontextmanager
    async def watched(*args: Any, **options: Any) -> AsyncIterator[recording.RecordProcess]:
        async with recording.record_process(*args, **options) as running:
            found.append(running)
            yield running

    monkeypatch.setattr(publisher, "record_process", watched)
    return found


# A process that gives way gets next to nothing of a busy machine.
@pytest.mark.parametrize(
    "how", ["does not start", *(pytest.param(each, marks=pytest.mark.slow) for each in HOW)]
)
async def test_a_process_writes_the_records_of_many_and_the_trainer_what_that_one_does_not(
    store: Store, started: list[recording.RecordProcess], monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    if how == "does not start":
        monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    policies: list[int] = []

    def step(name: str) -> None:
        if name == "publish:some_users" and started:
            with contextlib.suppress(ProcessLookupError):
                policies.append(os.sched_getscheduler(started[0].pid))
                if how == "is killed":
                    os.kill(started[0].pid, signal.SIGKILL)

    # The last user is one who was erased from the fit.
    ids = [b"u%d" % user for user in range(USERS - 1)] + [b"\xff\xff"]
    vectors = np.random.default_rng(1).standard_normal((USERS, MODEL.user_width)).astype(np.float32)
    result = fit_in_memory(MODEL, vectors, make_items(MODEL, 3), ids)
    await store.ratings.append([rating(user.decode(), "a") for user in ids[:-1]])
    publishing = Publisher(store, await lead(store), Threads(), step=step, apart_from=20)
    how_else: dict[str, Any] = {"engine": "variational", "positions": {}, "folder": None, "automatic": True}
    done = await publishing.publish(1, result, **how_else)
    assert done.live
    pipe, field = store.redis.pipeline(transaction=False), record_field(done.meta.summary.generation)
    for user_id in ids[:-1]:
        pipe.hget(store.keys.user(1, user_id), field.decode())
    n, found = unpack_records(await pipe.execute(), MODEL.user_width)
    assert n.tolist() == [1] * (USERS - 1)
    np.testing.assert_array_equal(found, vectors[:-1])
    if how == "lives":
        with pytest.raises(ProcessLookupError):
            os.kill(started[0].pid, 0)
        assert set(policies) == {os.SCHED_IDLE}
