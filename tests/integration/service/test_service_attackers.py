"""A hostile client for each quota, at ten times its share, beside others who keep to theirs: it is let
through its share, and no call of the others is refused or fails.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from featurestore.access import new_secret
from featurestore.settings import StoreSettings
from featurestore.store import Store
from tests.support.factories import publish_for_ann
from tests.support.serving import Service

# Shares of an hour: a test that a busy machine makes slow gets little more of them.
SHARE = {"requests": 60, "ratings": 40, "items": 20, "history": 30, "connections": 8}
TIMES = 10
LIMITS = ",".join(
    f"{name}={share}{'' if name in {'history', 'connections'} else '/h'}" for name, share in SHARE.items()
)
# Of the others, which are not to meet the bounds of requests and ratings above.
OTHERS = "requests=off,ratings=off"
CALLS = 40
# Ratings in a call of the attacker.
PER_CALL = 8


@dataclass
class Stack:
    """A worker, its store, and the keys of the attacker and of the others."""

    service: Service
    store: Store
    attacker: str
    others: str
    statuses: list[int] = field(default_factory=list)

    def client(self, key: str, address: str) -> aiohttp.ClientSession:
        """A client at an address of its own."""
        connector = aiohttp.TCPConnector(limit=0, local_addr=(address, 0))
        headers = {"Authorization": f"Bearer {key}"}
        timeout = aiohttp.ClientTimeout(30.0)
        return aiohttp.ClientSession(self.service.url, connector=connector, headers=headers, timeout=timeout)

    async def attack(self, bodies: list[list[dict[str, Any]]]) -> list[int]:
        """Rate as fast as answers come; the status of each call."""
        async with self.client(self.attacker, "127.0.0.1") as client:
            for body in bodies:
                async with client.post("/ratings", json=body) as answer:
                    self.statuses.append(answer.status)
        return self.statuses


async def requests(stack: Stack) -> None:
    wanted = SHARE["requests"] * TIMES
    async with stack.client(stack.attacker, "127.0.0.1") as client:

        async def ask() -> int:
            async with client.get("/predict?user_id=ann&item_id=item-1") as answer:
                return answer.status

        began = time.monotonic()
        # A connection that was refused is not read for a while: each has one of its own.
        statuses = await asyncio.gather(*(ask() for _ in range(4)))
        for _ in range(wanted // 40):
            async with stack.client(stack.attacker, "127.0.0.1") as fresh:
                for _ in range(10):
                    async with fresh.get("/predict?user_id=ann&item_id=item-1") as answer:
                        statuses.append(answer.status)
                    if statuses[-1] == 429:
                        break
        assert set(statuses) == {200, 429}
        # What came back meanwhile, and what a worker lets through before it knows.
        refilled = SHARE["requests"] * (time.monotonic() - began) / 3600
        assert SHARE["requests"] - 1 <= statuses.count(200) <= SHARE["requests"] * 1.1 + refilled + 1


async def ratings(stack: Stack) -> None:
    calls = SHARE["ratings"] * TIMES // PER_CALL
    bodies = [
        [{"user_id": f"u{call}", "item_id": f"item-{row}", "rating": 1} for row in range(PER_CALL)]
        for call in range(calls)
    ]
    statuses = await stack.attack(bodies)
    assert set(statuses) == {200, 429}
    # What the store has of its users: others rate meanwhile.
    taken = sum([(await stack.store.users.history(1, b"u%d" % call))[0] for call in range(calls)])
    assert SHARE["ratings"] - PER_CALL <= taken <= SHARE["ratings"] + PER_CALL


async def items(stack: Stack) -> None:
    before = await stack.store.redis.llen(stack.store.keys.order(1))
    bodies = [
        [{"user_id": "ann", "item_id": f"spam-{call}-{row}", "rating": 5} for row in range(2)]
        for call in range(SHARE["items"] * TIMES // 2)
    ]
    statuses = await stack.attack(bodies)
    assert set(statuses) == {200, 429}
    added = await stack.store.redis.llen(stack.store.keys.order(1)) - before
    assert SHARE["items"] - 2 <= added <= SHARE["items"]


async def history(stack: Stack) -> None:
    bodies = [
        [{"user_id": "heavy", "item_id": f"item-{call % 8}", "rating": 1 + call % 5}]
        for call in range(SHARE["history"] * TIMES)
    ]
    statuses = await stack.attack(bodies)
    assert set(statuses) == {200, 422}
    # What one user has: no answer reads more of anybody.
    assert SHARE["history"] - 1 <= (await stack.store.users.history(1, b"heavy"))[0] <= SHARE["history"]


async def connections(stack: Stack) -> None:
    wanted = SHARE["connections"] * TIMES
    held = await asyncio.gather(
        *(asyncio.open_connection("127.0.0.1", stack.service.port) for _ in range(wanted))
    )
    try:
        # Those beyond the share are told so and closed, the others stay open.
        writers = {asyncio.ensure_future(reader.read()): writer for reader, writer in held}
        pending, told = set(writers), set[asyncio.Future[bytes]]()
        deadline = time.monotonic() + 30
        while len(told) < wanted - SHARE["connections"] and time.monotonic() < deadline:
            done, pending = await asyncio.wait(pending, timeout=1.0, return_when=asyncio.FIRST_COMPLETED)
            told |= done
        assert len(told) == wanted - SHARE["connections"]
        assert all(each.result().startswith(b"HTTP/1.1 429") for each in told)
        # These are answered.
        for each in pending:
            writers[each].write(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        answers = await asyncio.wait_for(asyncio.gather(*pending), 30)
        assert [answer[:12] for answer in answers] == [b"HTTP/1.1 200"] * SHARE["connections"]
    finally:
        for _, writer in held:
            writer.close()


Attack = Callable[[Stack], Coroutine[None, None, None]]
# What the attacker is given besides: the bound that is tried is the only one it meets.
ATTACKS: dict[str, tuple[Attack, str]] = {
    "requests": (requests, "ratings=off,items=off,history=off"),
    "ratings": (ratings, "requests=off,items=off,history=off"),
    "items": (items, "requests=off,ratings=off,history=off"),
    "history": (history, "requests=off,ratings=off,items=off"),
    "connections": (connections, "requests=off"),
}


@pytest.mark.parametrize("quota", ATTACKS)
async def test_one_who_takes_ten_times_his_share_gets_it_and_others_notice_nothing(
    store: Store, store_settings: StoreSettings, tmp_path: Path, quota: str
) -> None:
    attack, free = ATTACKS[quota]
    await publish_for_ann(store, {f"item-{number}": 4.0 for number in range(8)})
    attacker, others = new_secret(), new_secret()
    await store.access.add(attacker, "attacker", "rate", free)
    await store.access.add(others, "others", "rate", OTHERS)
    service = Service(store_settings, tmp_path, environment={"FOLDIN_QUOTAS": LIMITS})
    try:
        await asyncio.to_thread(service.wait_for)
        stack = Stack(service, store, attacker, others)
        async with stack.client(others, "127.0.0.2") as client:
            attacking = asyncio.create_task(attack(stack))
            statuses = []
            for number in range(CALLS):
                async with client.get("/predict?user_id=ann&item_id=item-1") as answer:
                    statuses.append(answer.status)
                rating = {"user_id": f"other-{number}", "item_id": "item-2", "rating": 4}
                async with client.post("/ratings", json=rating) as answer:
                    statuses.append(answer.status)
            assert statuses == [200] * (2 * CALLS)
            await attacking
    finally:
        service.end()
