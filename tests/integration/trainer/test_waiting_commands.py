"""Commands that wait and cannot be read: the trainer says so and goes on, and an erasure is done all the
same.
"""

import asyncio
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from featurestore.store import Store
from tests.support.factories import rating
from tests.support.recovering import GIVEN, opened
from tests.support.servers import StoreServer
from tests.support.trainers import archived, fitted, running_trainer, until_drained
from tests.support.waiting import wait_until_async
from trainer.erasure.file_rewrites import FileRewrites
from trainer.retry import with_retries
from trainer.settings import TrainerSettings

Fields = dict[bytes, bytes]


def without(name: bytes) -> Callable[[Fields], Fields]:
    return lambda fields: {key: value for key, value in fields.items() if key != name}


def other(name: bytes, value: bytes) -> Callable[[Fields], Fields]:
    return lambda fields: {**fields, name: value}


DAMAGE = {
    "id": other(b"id", b"\xc3\xa9" * 16),
    "no id": without(b"id"),
    "kind": other(b"kind", b"\xe5rase"),
    "at": other(b"at", b"17x"),
    "user": without(b"user"),
}


async def damage(store: Store, change: Callable[[Fields], Fields]) -> None:
    redis: Any = store.redis
    ((entry, fields),) = await redis.xrange(store.keys.commands)
    await redis.delete(store.keys.commands)
    await redis.xadd(store.keys.commands, change(fields), id=entry)


@pytest.mark.parametrize("what", DAMAGE)
async def test_an_erasure_whose_command_cannot_be_read_is_done_and_others_are_taken(
    own_server: StoreServer, settings: TrainerSettings, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    async with opened(settings.store) as store:
        async with running_trainer(settings):
            await store.ratings.append([*GIVEN, rating("secret-one", "i1")])
            await fitted(store)
        forgotten = await store.ratings.forget(b"secret-one")
        assert forgotten is not None
        receipt = await store.commands.ask("erase", epoch=1, user=b"secret-one", at_ms=forgotten.at_ms)
        await damage(store, DAMAGE[what])
        async with running_trainer(settings):
            # Behind it in the stream.
            await fitted(store)

            async def erased() -> bool:
                return await store.commands.stage(receipt) is None

            await wait_until_async(erased, "the erasure has ended")
            outcome = await store.commands.outcome(receipt)
            assert outcome is not None
            assert outcome.state == "done"
            assert await store.redis.xlen(store.keys.commands) == 0, "it names the user"
            await until_drained(store)
    assert "term_ended" not in caplog.text
    assert "command_damaged" in caplog.text
    assert "secret-one" not in caplog.text
    assert not [row for row in archived(settings) if row[0] == "secret-one"]
    files = [path for path in settings.archive_folder.rglob("*") if path.is_file()]
    assert not [path for path in files if b"secret-one" in path.read_bytes()]


async def test_one_of_another_kind_stays_for_a_person(
    own_server: StoreServer, settings: TrainerSettings, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(settings.store) as store:
        await store.ratings.append(GIVEN)
        await store.commands.ask("refit", epoch=1)
        await damage(store, other(b"kind", b"\xf2efit"))
        await store.redis.hset(store.keys.erasing, b"\xff\xfe", b"asked 17 secret-one")
        await store.redis.hset(store.keys.erasing, "0" * 32, b"bsked 17 secret-one")
        async with running_trainer(settings):
            await fitted(store)
        assert await store.redis.xlen(store.keys.commands) == 1
        assert await store.redis.hlen(store.keys.erasing) == 2
    assert "term_ended" not in caplog.text
    assert caplog.text.count("command_damaged") == 3
    assert "secret-one" not in caplog.text


async def test_an_outcome_that_cannot_be_read_is_written_anew(
    own_server: StoreServer, settings: TrainerSettings, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(settings.store) as store:
        await store.ratings.append(GIVEN)
        command = await store.commands.ask("refit", epoch=1)
        await store.redis.set(store.keys.command(command), b"\xff no outcome")
        async with running_trainer(settings):

            async def done() -> bool:
                return await store.redis.xlen(store.keys.commands) == 0

            await wait_until_async(done, "the command is carried out")
        outcome = await store.commands.outcome(command)
        assert outcome is not None
        assert outcome.state == "done"
    assert "term_ended" not in caplog.text


async def test_an_erasure_of_an_earlier_leader_is_open_since_it_was_asked_for(
    own_server: StoreServer, settings: TrainerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By which the alert of a command that is stuck goes: a restart does not begin its time anew."""
    may_end = asyncio.Event()

    async def waits(_self: FileRewrites) -> None:
        await may_end.wait()

    monkeypatch.setattr(FileRewrites, "rewritten", waits)
    async with opened(settings.store) as store:
        await store.ratings.append(GIVEN)
        began_ms = await store.time_ms()
        await store.redis.hset(store.keys.erasing, "0" * 32, b"asked 1700000000000 secret-one")
        await store.redis.hset(store.keys.erasing, "1" * 32, b"files")
        async with running_trainer(settings) as trainer:

            async def open_since() -> int | None:
                return None if trainer.term is None else trainer.term.commands.oldest_open_ms

            async def taken() -> bool:
                return await open_since() is not None

            await wait_until_async(taken, "the erasures are taken")
            assert await open_since() == 1_700_000_000_000
            await fitted(store)

            async def only_files() -> bool:
                return await store.commands.stage("0" * 32) == "files"

            await wait_until_async(only_files, "nothing but the files of the store is left")
            assert await open_since() == 1_700_000_000_000
        async with running_trainer(settings) as trainer:
            await wait_until_async(taken, "the erasures are taken")
            since_ms = await open_since()
            assert since_ms is not None
            assert since_ms >= began_ms
            may_end.set()

            async def ended() -> bool:
                return await open_since() is None and not await store.redis.hlen(store.keys.erasing)

            await wait_until_async(ended, "both have ended")


async def test_what_was_reported_and_went_with_the_end_of_the_store_is_done_once_more(
    own_server: StoreServer, settings: TrainerSettings, tmp_path: Path
) -> None:
    """As with a primary whose last moments no replica has."""
    data, backup = own_server.folder / "appendonlydir", tmp_path / "backup"
    # Longer than all this takes: the lease is as it was.
    settings = replace(settings, lease_ttl_s=30.0)
    async with opened(settings.store) as store:
        held, taken = asyncio.Event(), asyncio.Event()

        async def wait(erasures: FileRewrites) -> None:
            taken.set()
            await held.wait()
            await rewritten(erasures)

        rewritten = FileRewrites.rewritten
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(FileRewrites, "rewritten", wait)
            async with running_trainer(settings) as trainer:
                await store.ratings.append([*GIVEN, rating("secret-one", "i1")])
                await fitted(store)
                forgotten = await store.ratings.forget(b"secret-one")
                receipt = await store.commands.ask(
                    "erase", epoch=1, user=b"secret-one", at_ms=forgotten.at_ms
                )
                await asyncio.wait_for(taken.wait(), 20)
                shutil.copytree(data, backup)
                held.set()

                async def erased() -> bool:
                    return await with_retries(store.commands.stage, receipt) is None

                await wait_until_async(erased, "the erasure has ended")
                term = trainer.term
                own_server.stop()
                shutil.rmtree(data)
                shutil.copytree(backup, data)
                own_server.start()
                assert not await erased()
                await wait_until_async(erased, "the erasure has ended again")
                assert trainer.term is term
