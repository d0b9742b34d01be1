"""The lecture's contract over real HTTP: keys, types, order of things, and an answer to every bad request."""

import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import aiohttp
import pytest
from yarl import URL

from environment.server import running_server
from environment.settings import ServerSettings
from environment.world import WorldOptions
from tests.support.waiting import PATIENCE_S

SMALL = WorldOptions(n_users=4, n_items=5, n_known=12)
HISTORIES = ("user_history", "item_history", "rating_history")


class Caller:
    def __init__(self, session: aiohttp.ClientSession, address: str) -> None:
        self.session, self.address = session, address

    async def __call__(self, path: str) -> tuple[int, str, dict[str, Any]]:
        async with self.session.get(URL(self.address + path, encoded=True)) as response:
            return response.status, response.content_type, await response.json(content_type=None)

    async def document(self, path: str) -> dict[str, Any]:
        status, kind, found = await self(path)
        assert (status, kind) == (200, "application/json"), found
        return found

    async def rate(self, token: str, score: str = "3") -> dict[str, Any]:
        return await self.document(f"/predict?user_id={token}&predicted_score={score}")


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as made:
        yield made


@pytest.fixture
async def lecture(session: aiohttp.ClientSession) -> AsyncIterator[Caller]:
    async with running_server(ServerSettings(port=0)) as address:
        yield Caller(session, address)


@pytest.fixture
async def small(session: aiohttp.ClientSession) -> AsyncIterator[Caller]:
    async with running_server(ServerSettings(port=0, seed=1, max_tokens=3, world=SMALL)) as address:
        yield Caller(session, address)


async def test_the_course_s_client_plays_a_thousand_steps(lecture: Caller) -> None:
    async with lecture.session.get(f"{lecture.address}/") as response:
        assert (response.status, response.content_type) == (200, "text/plain")
        assert await response.text() == "Hello World!"
    data = await lecture.document("/reset?user_id=aaaa")
    assert set(data) == {"nb_users", "nb_items", *HISTORIES, "next_user", "next_item"}
    assert (data["nb_users"], data["nb_items"]) == (100, 300)
    for name in HISTORIES:
        assert len(data[name]) == 10_000
        assert all(type(value) is int for value in data[name])
    assert set(data["user_history"]) <= set(range(100))
    assert set(data["item_history"]) <= set(range(300))
    assert set(data["rating_history"]) == {1, 2, 3, 4, 5}
    pairs = set(zip(data["user_history"], data["item_history"], strict=True))
    assert len(pairs) == 10_000
    pending, squared = (data["next_user"], data["next_item"]), 0.0
    for _ in range(1_000):
        assert pending not in pairs
        pairs.add(pending)
        answer = await lecture.rate("aaaa", "0.761")
        assert set(answer) == {"next_item", "next_user", "rating"}
        assert all(type(value) is int for value in answer.values())
        squared += (3 - answer["rating"]) ** 2
        pending = (answer["next_user"], answer["next_item"])
    assert 1.3 < squared / 1_000 < 2.6


async def test_the_second_environment_sends_the_variables_of_each_event(
    session: aiohttp.ClientSession,
) -> None:
    known = [
        ServerSettings(port=0, world=WorldOptions(n_known=n_known, n_variables=5))
        for n_known in (2_000, 2_003)
    ]
    async with running_server(known[0]) as address, running_server(known[1]) as further:
        ask = Caller(session, address)
        data = await ask.document("/reset?user_id=a&seed=5")
        longer = await Caller(session, further).document("/reset?user_id=a&seed=5")
        sent = [data["next_variables"]]
        for _ in range(3):
            answer = await ask.rate("a")
            assert set(answer) == {"next_item", "next_user", "rating", "next_variables"}
            sent.append(answer["next_variables"])
    added = {"variables_history", "next_variables"}
    assert set(data) == {"nb_users", "nb_items", *HISTORIES, "next_user", "next_item"} | added
    assert {len(numbers) for numbers in data["variables_history"]} == {5}
    assert [*data["variables_history"], *sent[:3]] == longer["variables_history"]
    assert sent[3] == longer["next_variables"]


async def test_every_pair_is_played_once_and_then_410(small: Caller) -> None:
    data = await small.document("/reset?user_id=a")
    pairs = list(zip(data["user_history"], data["item_history"], strict=True))
    pairs.append((data["next_user"], data["next_item"]))
    for _ in range(7):
        answer = await small.rate("a")
        pairs.append((answer["next_user"], answer["next_item"]))
    assert sorted(pairs) == [(user, item) for user in range(4) for item in range(5)]
    status, kind, last = await small("/predict?user_id=a&predicted_score=1")
    assert (status, kind, last["code"]) == (410, "application/problem+json", "no_pair_left")
    assert last["rating"] in {1, 2, 3, 4, 5}
    status, _, after = await small("/predict?user_id=a&predicted_score=1")
    assert (status, after["code"], "rating" in after) == (410, "no_pair_left", False)
    await small.document("/reset?user_id=a")
    await small.rate("a")


async def test_a_reset_gives_new_values_and_a_seed_the_same(small: Caller) -> None:
    worlds = [await small.document("/reset?user_id=a") for _ in range(2)]
    assert worlds[0] != worlds[1]
    seeded = [await small.document(f"/reset?user_id={token}&seed=7") for token in "ab"]
    assert seeded[0] == seeded[1]
    # Three tokens are kept: the longest silent one is told to begin again.
    for token in "cd":
        await small.document(f"/reset?user_id={token}")
    status, _, document = await small("/predict?user_id=a&predicted_score=1")
    assert (status, document["code"]) == (404, "unknown_user_id")
    assert "/reset" in document["detail"]
    assert await small.document("/livez") == {"status": "ok", "tokens": 3}


BAD = [
    ("/reset", "missing_parameter"),
    ("/reset?user_id=", "invalid_user_id"),
    (f"/reset?user_id={'x' * 257}", "invalid_user_id"),
    (f"/reset?user_id={'%C3%A9' * 129}", "invalid_user_id"),
    ("/reset?user_id=%FF", "invalid_query"),
    ("/reset?user_id=a&user_id=b", "repeated_parameter"),
    ("/reset?" + "&".join(f"p{i}=1" for i in range(40)), "invalid_query"),
    *((f"/reset?user_id=a&seed={seed}", "invalid_seed") for seed in ("-1", "9223372036854775808", "")),
    ("/predict?predicted_score=1", "missing_parameter"),
    ("/predict?user_id=a", "missing_parameter"),
    *(
        (f"/predict?user_id=a&predicted_score={text}", "invalid_predicted_score")
        for text in ("", "NaN", "inf", "-Infinity", "1e999", "1_0", "0x10", "true", "%D9%A1", "1%00", "%201")
    ),
]


async def test_bad_input_is_named_and_changes_nothing(small: Caller) -> None:
    before = await small.document("/reset?user_id=a&seed=3")
    for path, code in BAD:
        status, kind, document = await small(path)
        assert (status, kind) == (400, "application/problem+json"), path
        assert set(document) == {"type", "title", "status", "detail", "code"}
        assert (document["status"], document["code"]) == (400, code), path
    rated = await small.rate("a")
    assert await small.document("/reset?user_id=b&seed=3") == before
    assert await small.rate("b") == rated
    status, kind, document = await small("/nothing")
    assert (status, kind, document["code"]) == (404, "application/problem+json", "not_found")
    async with small.session.post(f"{small.address}/reset?user_id=a") as response:
        assert (response.status, response.headers["Allow"].split(",")[0]) == (405, "GET")
        assert response.content_type == "application/problem+json"


@contextmanager
def environment(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    command = [sys.executable, "-m", "environment", "--port", "0", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("environment on http://127.0.0.1:"), line
        yield process, line.split()[-1]
    finally:
        process.kill()
        process.communicate(timeout=PATIENCE_S)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_code_0_though_clients_are_connected(number: signal.Signals) -> None:
    with environment() as (process, address):
        with urllib.request.urlopen(f"{address}/") as response:
            assert response.read() == b"Hello World!"
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as client:
            client.sendall(b"GET /reset?user_id=a HT")
            process.send_signal(number)
            _, errors = process.communicate(timeout=PATIENCE_S)
        assert (process.returncode, errors) == (0, "")
