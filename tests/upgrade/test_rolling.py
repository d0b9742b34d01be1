"""A stack goes from the last release to this code and back under load, part by part: no call fails, no rating
is lost, and both versions give the same answers of what has not changed between them.
"""

import asyncio
import itertools
import os
import random
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from featurestore.settings import StoreSettings
from featurestore.store import Store
from processes.blocking import BlockingChild, python_command
from tests.support.factories import low_rank_ratings
from tests.support.releases import checkout_of, last_release
from tests.support.servers import KIND, StoreServer, running_server
from tests.support.serving import Service, quiet
from tests.support.trainers import (
    archived,
    fitted,
    trainer_environment,
    trainer_settings,
    until_drained,
)
from tests.support.waiting import wait_until_async
from trainer.archive.erasures import ledger_files, parse_ledger

pytestmark = pytest.mark.slow


# As deploy/nginx has it: a connection that fails is tried at the next replica, up to four.
TRIES = 4
RATERS = 3
# One in the last digit of an answer.
ROUNDED = 1.5e-6
# A fit takes a second or two: some of each version go live in the half minute that this takes.
REFITS = {"FOLDIN_REFIT_EVENTS": "100", "FOLDIN_REFIT_SECONDS": "1", "FOLDIN_REFIT_GROWTH": "0"}


class Balancer:
    """A client that asks replicas as nginx does; counts what it asked, and keeps what failed."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session
        self._turn = itertools.count()
        self.replicas: list[Service] = []
        self.asked = 0
        self.failed: list[str] = []

    async def ask(self, method: str, path: str, body: Any = None) -> Any:
        self.asked += 1
        why = ""
        for _ in range(TRIES):
            replica = self.replicas[next(self._turn) % len(self.replicas)]
            try:
                async with self._session.request(method, replica.url + path, json=body) as answer:
                    if answer.status < 400:
                        return await answer.json()
                    why = f"{answer.status} {await answer.text()}"
                    break
            except aiohttp.ClientError as exc:
                why = repr(exc)
        self.failed.append(f"{method} {path}: {why}")
        return None


class Roller:
    """A stack whose parts are replaced one after the other. `old`: the checkout of the last release."""

    def __init__(self, store: StoreSettings, folder: Path, old: Path, balancer: Balancer) -> None:
        self.settings = trainer_settings(store, folder / "archive")
        self._folder = folder
        self._old = old
        self._balancer = balancer
        self._trainers = itertools.count()
        self.trainer: BlockingChild | None = None

    async def add(self, *, old: bool) -> Service:
        """Start a replica, and send it requests when it is ready."""
        checkout = self._old if old else None
        service = Service(self.settings.store, self._folder, checkout=checkout)
        await asyncio.to_thread(service.wait_for)
        self._balancer.replicas.append(service)
        return service

    async def remove(self, service: Service) -> None:
        """Stop a replica, which is asked until its door is closed."""
        ending = asyncio.create_task(asyncio.to_thread(service.end))
        await asyncio.sleep(0.2)
        self._balancer.replicas.remove(service)
        assert await ending == 0

    async def train(self, *, old: bool) -> None:
        """Let a trainer of this version take the place of the one that runs."""
        if self.trainer is not None:
            assert await asyncio.to_thread(self.trainer.end, signal.SIGTERM, 30.0) == 0
        environment = {**os.environ, **trainer_environment(self.settings), **REFITS}
        if old:
            environment |= {"PYTHONPATH": str(self._old), "PYTHONSAFEPATH": "1"}
        log = self._folder / f"trainer-{next(self._trainers)}.log"
        self.trainer = BlockingChild(python_command("trainer"), log, environment=environment)

    async def end(self) -> None:
        if self.trainer is not None:
            await asyncio.to_thread(self.trainer.end, signal.SIGTERM, 30.0)
        for service in self._balancer.replicas:
            await asyncio.to_thread(service.end)


async def rate_and_ask(balancer: Balancer, name: str, stop: asyncio.Event) -> dict[tuple[str, str], float]:
    """Rate and ask as a client does, until `stop`; return the ratings that were acknowledged last."""
    rng = random.Random(name)
    held: dict[tuple[str, str], float] = {}
    while not stop.is_set():
        user, item, value = f"{name}-{rng.randrange(20)}", f"j{rng.randrange(15)}", float(rng.randint(1, 5))
        body = {"user_id": user, "item_id": item, "rating": value}
        if await balancer.ask("POST", "/ratings", body) is not None:
            held[user, item] = value
        await balancer.ask("GET", f"/predict?user_id={user}&item_id=j{rng.randrange(15)}")
        await balancer.ask("GET", f"/recommend/{user}?n=3")
        shown = await balancer.ask("GET", f"/users/{user}/ratings")
        if shown is not None:
            # Read your writes, whichever version took the rating and whichever shows it.
            assert {each["item_id"]: each["rating"] for each in shown["ratings"]}[item] == held[user, item]
        await asyncio.sleep(0.01)
    return held


async def compare(session: aiohttp.ClientSession, one: Service, other: Service) -> None:
    """Compare what two replicas answer in the same generation, of users and items without ratings meanwhile:
    in the first two answers that are of one generation all is the same.
    """
    pairs = {"pairs": [[f"u{user}", f"i{item}"] for user in range(30) for item in range(12)]}

    async def of_one_generation() -> list[Any]:
        answers = []
        for service in (one, other):
            async with session.post(service.url + "/predict", json=pairs) as answer:
                answers.append(await answer.json())
        same = answers[0]["generation"] == answers[1]["generation"]
        return [answer["predictions"] for answer in answers] if same else []

    ones, others = await wait_until_async(of_one_generation, "two answers of one generation")
    for pair, a, b in zip(pairs["pairs"], ones, others, strict=True):
        assert a["basis"] == b["basis"] == "user+item", pair
        # By the digits of an answer: what two versions add up in another order may be rounded otherwise.
        assert [a["rating"], a["std"]] == pytest.approx([b["rating"], b["std"]], rel=0, abs=ROUNDED), pair


async def next_generation(store: Store) -> None:
    """Wait until another generation is live than now."""
    before = (await store.generations.live()).generation

    async def newer() -> bool:
        return (await store.generations.live()).generation > before

    # As long as `fitted` waits: raters leave a fit, which yields to all else, little of a busy machine.
    await wait_until_async(newer, "a fit of this trainer is live", timeout_s=100.0)


async def forget(session: aiohttp.ClientSession, service: Service, user: str) -> tuple[str, str]:
    """Rate as this user, and forget it; return the receipt and what it says."""
    body = {"user_id": user, "item_id": "j1", "rating": 2.0}
    async with session.post(service.url + "/ratings", json=body) as answer:
        assert answer.status < 400, await answer.text()
    async with session.delete(f"{service.url}/users/{user}") as answer:
        assert answer.status == 200, await answer.text()
        receipt = await answer.json()
    return receipt["receipt"], receipt["archive"]


async def said(session: aiohttp.ClientSession, service: Service, receipt: str) -> str:
    """What a replica says of a receipt."""
    async with session.get(f"{service.url}/receipts/{receipt}") as answer:
        assert answer.status == 200, await answer.text()
        return str((await answer.json())["archive"])


async def until_erased(session: aiohttp.ClientSession, service: Service, receipt: str) -> None:
    async def erased() -> bool:
        return await said(session, service, receipt) == "erased"

    await wait_until_async(erased, "the receipt says erased")


@asynccontextmanager
async def loaded(balancer: Balancer) -> AsyncIterator[dict[tuple[str, str], float]]:
    """Raters for the length of a `with`; what they hold is there at the end."""
    held: dict[tuple[str, str], float] = {}
    stop = asyncio.Event()
    raters = [asyncio.create_task(rate_and_ask(balancer, f"r{k}", stop)) for k in range(RATERS)]
    try:
        yield held
    finally:
        stop.set()
        for each in await asyncio.gather(*raters):
            held |= each


@pytest.fixture
def own_redis(tmp_path: Path) -> Any:
    (tmp_path / "store").mkdir()
    with running_server(KIND, tmp_path / "store") as server:
        yield server


@pytest.mark.timeout(360)
async def test_a_stack_rolls_to_this_version_and_back(own_redis: StoreServer, tmp_path: Path) -> None:
    old = checkout_of(last_release(), tmp_path / "old")
    settings = StoreSettings(url=own_redis.url, partitions=4, timeout_s=5.0)
    timeout = aiohttp.ClientTimeout(30)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        balancer = Balancer(session)
        roller = Roller(settings, tmp_path, old, balancer)
        try:
            await roller.train(old=True)
            first, second = [await roller.add(old=True) for _ in range(2)]
            store = await Store.open(settings)
            await store.ratings.append(low_rank_ratings())
            # It has learned all of these, and so has each that follows: none of their items moves in it.
            await fitted(store)
            async with loaded(balancer) as held:
                for back in (False, True):
                    # Of the other version than what runs.
                    third = await roller.add(old=back)
                    await compare(session, second, third)
                    newer = second if back else third
                    # Both versions take it, whichever trainer runs, and both show the receipts of both.
                    receipts = [(await forget(session, each, f"gone-{back}"))[0] for each in (second, third)]
                    for each, receipt in itertools.product((second, third), receipts):
                        assert await said(session, each, receipt) in {"pending", "erased"}
                    await roller.remove(first)
                    await next_generation(store)
                    if not back:
                        # What the trainer of the release before does is less than `erased` says now.
                        assert await said(session, newer, receipts[1]) == "pending"
                    await roller.train(old=back)
                    await next_generation(store)
                    for receipt in receipts:
                        await until_erased(session, newer, receipt)
                    if back:
                        left, state = await forget(session, newer, "left")
                        assert state == "pending"
                    await compare(session, second, third)
                    fourth = await roller.add(old=back)
                    await roller.remove(second)
                    await next_generation(store)
                    await quiet(1.0)
                    first, second = third, fourth
            # Forward again: what the older trainer left of it is done.
            last_service = await roller.add(old=False)
            assert await said(session, last_service, left) == "pending"
            await roller.train(old=False)
            await until_erased(session, last_service, left)
            ledgers = [
                parse_ledger(file, file.read_bytes()) for file in ledger_files(roller.settings.archive_folder)
            ]
            assert max(int(each.erased_at([b"left"])[0]) for each in ledgers) > 0
            await until_drained(store)
            libraries = await store.redis.function_list()
            assert len(libraries) == 2, "both versions have run"
            for (user, item), value in held.items():
                shown = await balancer.ask("GET", f"/users/{user}/ratings")
                assert {each["item_id"]: each["rating"] for each in shown["ratings"]}[item] == value
            last = {(user, item): value for user, _, item, value in archived(roller.settings)}
            assert {pair: last.get(pair) for pair in held} == held
            await store.close()
        finally:
            await roller.end()
    assert balancer.failed == [], balancer.failed[:5]
    print(f"{balancer.asked} calls, {len(held)} ratings of pairs, 0 failed, 0 lost")
    assert balancer.asked > 1_000
