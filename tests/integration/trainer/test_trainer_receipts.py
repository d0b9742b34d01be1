"""The receipt of an erasure says what it waits for, in words that name nothing."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from featurestore.commands import Commands, Outcome
from featurestore.errors import StoreRefused
from featurestore.leases import Lease
from tests.support.factories import rating
from tests.support.failing_reads import FAILURES, failing
from tests.support.recovering import GIVEN, opened
from tests.support.servers import StoreServer
from tests.support.serving import Client, serving
from tests.support.trainers import fitted, running_trainer, until_drained
from tests.support.waiting import wait_until_async
from trainer import commands
from trainer.consume.consumer import EpochConsumer
from trainer.erasure import waiting
from trainer.fit_job.folder import FitFolder
from trainer.settings import TrainerSettings

USER = "secret-one"


async def until_it_waits(client: Client, receipt: str, for_what: str) -> None:
    async def said() -> bool:
        answer = (await client.get(f"/receipts/{receipt}")).json
        assert answer["archive"] == "pending"
        assert USER not in answer["detail"]
        assert "/" not in answer["detail"]
        return bool(answer["detail"] == for_what)

    await wait_until_async(said, for_what)


async def until_erased(client: Client, receipt: str) -> None:
    async def erased() -> bool:
        answer = (await client.get(f"/receipts/{receipt}")).json
        return bool(answer["archive"] == "erased" and "detail" not in answer)

    await wait_until_async(erased, "the receipt says erased")


async def asked(client: Client) -> str:
    """Forget the user; return the receipt, as a caller of the API has it."""
    return str((await client.ask("DELETE", f"/users/{USER}")).json["receipt"])


@asynccontextmanager
async def beside_a_fit(
    settings: TrainerSettings, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[Client, str]]:
    """The user is forgotten while a fit runs that may have it, as long as a `with`, and erased behind it."""
    async with (
        opened(settings.store) as store,
        serving(settings.store) as (client, _),
        running_trainer(settings),
    ):
        await store.ratings.append([*GIVEN, rating(USER, "i1")])
        await until_drained(store)
        with monkeypatch.context() as patched:
            patched.setattr(FitFolder, "may_know", lambda _self, user_id: user_id == USER.encode())
            receipt = await asked(client)
            yield client, receipt
        await until_erased(client, receipt)


async def test_a_trainer_and_then_a_file_that_cannot_be_read(
    own_server: StoreServer, settings: TrainerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "_MENDED_S", 0.2)
    async with opened(settings.store) as store, serving(settings.store) as (client, _):
        async with running_trainer(settings):
            await store.ratings.append([*GIVEN, rating(USER, "i1")])
            await fitted(store)
            await until_drained(store)
        folder = settings.archive_folder / "epoch-000001"
        (victim,) = [path for path in folder.glob("*.parquet") if USER.encode() in path.read_bytes()]
        receipt = await asked(client)
        await until_it_waits(client, receipt, "a trainer has to begin with it")
        with monkeypatch.context() as patched:
            # Its footer can be read, its rows cannot.
            failing(patched, FAILURES["EIO"], lambda path: path.name == victim.name, rows_alone=True)
            async with running_trainer(settings):
                await until_it_waits(client, receipt, waiting.FILE)
            # What that one said last is still there.
            await until_it_waits(client, receipt, "a trainer has to begin with it")
            await store.redis.delete(store.keys.command(receipt.partition("-")[0]))
            async with running_trainer(settings):
                await until_it_waits(client, receipt, waiting.FILE)
                # Of an outcome that is damaged the receipt stays good.
                await store.redis.set(store.keys.command(receipt.partition("-")[0]), b"{")
                await until_it_waits(client, receipt, "a trainer has to begin with it")
                reached = asyncio.Event()
                with monkeypatch.context() as held:
                    held.setattr(EpochConsumer, "reached_now", lambda _self: reached.wait())
                    await until_it_waits(client, receipt, waiting.ARCHIVED)
                reached.set()
                patched.undo()
                await until_erased(client, receipt)


async def test_a_fit_that_runs(
    own_server: StoreServer, settings: TrainerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with beside_a_fit(settings, monkeypatch) as (client, receipt):
        await until_it_waits(client, receipt, waiting.FIT)


async def test_one_that_cannot_be_told_of_goes_on(
    own_server: StoreServer,
    settings: TrainerSettings,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told = Commands.report

    async def refused(self: Commands, lease: Lease, command_id: str, outcome: Outcome) -> None:
        if outcome.detail is not None:
            raise StoreRefused("NOPERM")
        await told(self, lease, command_id, outcome)

    async def said() -> bool:
        return "erasure_not_told" in caplog.text

    monkeypatch.setattr(Commands, "report", refused)
    async with beside_a_fit(settings, monkeypatch):
        await wait_until_async(said, "the refusal in the log")
