"""The lecture's contract over real HTTP: keys, types, order of things, and an answer to every bad request."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from environment.server import running_server
from environment.settings import ServerSettings
from environment.world import WorldOptions

SMALL = WorldOptions(n_users=4, n_items=5, n_known=12)
HISTORIES = ("user_history", "item_history", "rating_history")


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)) as made:
        yield made


@pytest.fixture
async def lecture() -> AsyncIterator[str]:
    async with running_server(ServerSettings(port=0)) as address:
        yield address


@pytest.fixture
async def small() -> AsyncIterator[str]:
    async with running_server(ServerSettings(port=0, seed=1, max_tokens=3, world=SMALL)) as address:
        yield address


async def get(session: aiohttp.ClientSession, url: str) -> tuple[int, str, dict[str, Any]]:
    async with session.get(url) as response:
        return response.status, response.content_type, await response.json(content_type=None)


async def test_hello_world(session: aiohttp.ClientSession, lecture: str) -> None:
    async with session.get(f"{lecture}/") as response:
        assert response.status == 200
        assert response.content_type == "text/plain"
        assert await response.text() == "Hello World!"


async def test_reset_has_exactly_the_lectures_keys_and_no_pair_twice(
    session: aiohttp.ClientSession, lecture: str
) -> None:
    status, kind, data = await get(session, f"{lecture}/reset?user_id=aaaa")
    assert (status, kind) == (200, "application/json")
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
    assert (data["next_user"], data["next_item"]) not in pairs


async def test_a_client_as_the_course_writes_it_plays_a_thousand_steps(
    session: aiohttp.ClientSession, lecture: str
) -> None:
    _, _, data = await get(session, f"{lecture}/reset?user_id=bbbb")
    pairs = set(zip(data["user_history"], data["item_history"], strict=True))
    next_user, next_item = data["next_user"], data["next_item"]
    squared = 0.0
    for step in range(1_000):
        assert (next_user, next_item) not in pairs
        pairs.add((next_user, next_item))
        status, _, data = await get(session, f"{lecture}/predict?user_id=bbbb&predicted_score={3 + step * 0}")
        assert status == 200
        assert set(data) == {"next_item", "next_user", "rating"}
        assert all(type(value) is int for value in data.values())
        squared += (3 - data["rating"]) ** 2
        next_user, next_item = data["next_user"], data["next_item"]
    assert 1.3 < squared / 1_000 < 2.6


async def test_the_second_environment_sends_the_variables_of_each_event(
    session: aiohttp.ClientSession,
) -> None:
    """2,000 known rows, five numbers a row; what `/predict` returned stands in a longer history."""
    known = [
        ServerSettings(port=0, world=WorldOptions(n_known=n_known, n_variables=5))
        for n_known in (2_000, 2_003)
    ]
    async with running_server(known[0]) as address, running_server(known[1]) as further:
        _, _, data = await get(session, f"{address}/reset?user_id=a&seed=5")
        _, _, longer = await get(session, f"{further}/reset?user_id=a&seed=5")
        sent = [data["next_variables"]]
        for _ in range(3):
            _, _, answer = await get(session, f"{address}/predict?user_id=a&predicted_score=3")
            assert set(answer) == {"next_item", "next_user", "rating", "next_variables"}
            sent.append(answer["next_variables"])
    assert set(data) == {
        "nb_users",
        "nb_items",
        *HISTORIES,
        "next_user",
        "next_item",
        "variables_history",
        "next_variables",
    }
    assert len(data["variables_history"]) == 2_000
    assert {len(numbers) for numbers in data["variables_history"]} == {5}
    assert [*data["variables_history"], *sent[:3]] == longer["variables_history"]
    assert sent[3] == longer["next_variables"]


async def test_a_rating_is_that_of_the_pair_that_was_pending(
    session: aiohttp.ClientSession, lecture: str
) -> None:
    """The same world with a longer history shows what the pending pair's rating had to be."""
    world = WorldOptions(n_known=10_100)
    async with running_server(ServerSettings(port=0, world=world)) as further:
        _, _, longer = await get(session, f"{further}/reset?user_id=a&seed=5")
    _, _, data = await get(session, f"{lecture}/reset?user_id=a&seed=5")
    pending = (data["next_user"], data["next_item"])
    assert data["rating_history"] == longer["rating_history"][:10_000]
    for position in range(10_000, 10_100):
        assert pending == (longer["user_history"][position], longer["item_history"][position])
        _, _, answer = await get(session, f"{lecture}/predict?user_id=a&predicted_score=0.761")
        assert answer["rating"] == longer["rating_history"][position]
        pending = (answer["next_user"], answer["next_item"])
    assert pending == (longer["next_user"], longer["next_item"])


async def test_every_pair_is_played_once_and_then_410(session: aiohttp.ClientSession, small: str) -> None:
    _, _, data = await get(session, f"{small}/reset?user_id=a")
    pairs = list(zip(data["user_history"], data["item_history"], strict=True))
    pending = (data["next_user"], data["next_item"])
    for _ in range(7):
        pairs.append(pending)
        status, _, answer = await get(session, f"{small}/predict?user_id=a&predicted_score=1")
        assert status == 200
        pending = (answer["next_user"], answer["next_item"])
    pairs.append(pending)
    assert sorted(pairs) == [(user, item) for user in range(4) for item in range(5)]
    status, kind, last = await get(session, f"{small}/predict?user_id=a&predicted_score=1")
    assert (status, kind, last["code"]) == (410, "application/problem+json", "no_pair_left")
    assert last["rating"] in {1, 2, 3, 4, 5}
    status, _, after = await get(session, f"{small}/predict?user_id=a&predicted_score=1")
    assert (status, after["code"]) == (410, "no_pair_left")
    assert "rating" not in after
    assert (await get(session, f"{small}/reset?user_id=a"))[0] == 200
    assert (await get(session, f"{small}/predict?user_id=a&predicted_score=1"))[0] == 200


async def test_a_reset_gives_new_values_and_a_seed_the_same(
    session: aiohttp.ClientSession, lecture: str
) -> None:
    worlds = [await get(session, f"{lecture}/reset?user_id=a") for _ in range(2)]
    assert worlds[0] != worlds[1]
    seeded = [await get(session, f"{lecture}/reset?user_id={token}&seed=7") for token in "ab"]
    assert seeded[0] == seeded[1]


async def test_the_longest_silent_token_is_told_to_reset(session: aiohttp.ClientSession, small: str) -> None:
    for token in "abcd":
        await get(session, f"{small}/reset?user_id={token}")
    status, _, document = await get(session, f"{small}/predict?user_id=a&predicted_score=1")
    assert (status, document["code"]) == (404, "unknown_user_id")
    assert "/reset" in document["detail"]
    _, _, alive = await get(session, f"{small}/livez")
    assert alive == {"status": "ok", "tokens": 3}


@pytest.mark.slow
async def test_two_thousand_tokens_at_once(session: aiohttp.ClientSession) -> None:
    async with running_server(ServerSettings(port=0, max_tokens=5_000, world=SMALL)) as address:

        async def play(token: int) -> int:
            await get(session, f"{address}/reset?user_id={token}")
            status, _, _ = await get(session, f"{address}/predict?user_id={token}&predicted_score=2.5")
            return status

        assert set(await asyncio.gather(*(play(token) for token in range(2_000)))) == {200}
        assert (await get(session, f"{address}/livez"))[2]["tokens"] == 2_000


BAD = [
    ("/reset", "missing_parameter"),
    ("/reset?user_id=", "invalid_user_id"),
    (f"/reset?user_id={'x' * 257}", "invalid_user_id"),
    (f"/reset?user_id={'%C3%A9' * 129}", "invalid_user_id"),
    ("/reset?user_id=%FF", "invalid_query"),
    ("/reset?user_id=a&user_id=b", "repeated_parameter"),
    ("/reset?" + "&".join(f"p{i}=1" for i in range(40)), "invalid_query"),
    ("/reset?user_id=a&seed=-1", "invalid_seed"),
    ("/reset?user_id=a&seed=9223372036854775808", "invalid_seed"),
    ("/reset?user_id=a&seed=", "invalid_seed"),
    ("/predict?predicted_score=1", "missing_parameter"),
    ("/predict?user_id=a", "missing_parameter"),
    *(
        (f"/predict?user_id=a&predicted_score={text}", "invalid_predicted_score")
        for text in (
            "",
            "NaN",
            "inf",
            "-Infinity",
            "1e999",
            "abc",
            "1_0",
            "0x10",
            "true",
            "%D9%A1",
            "1%00",
            "1,5",
            "%201",
        )
    ),
]


@pytest.mark.parametrize(("path", "code"), BAD)
async def test_bad_input_is_named_and_changes_nothing(
    session: aiohttp.ClientSession, small: str, path: str, code: str
) -> None:
    _, _, before = await get(session, f"{small}/reset?user_id=a&seed=3")
    from yarl import URL

    status, kind, document = await get(session, str(URL(small + path, encoded=True)))
    assert (status, kind) == (400, "application/problem+json")
    assert set(document) == {"type", "title", "status", "detail", "code"}
    assert (document["status"], document["code"]) == (400, code)
    _, _, rated = await get(session, f"{small}/predict?user_id=a&predicted_score=1")
    _, _, again = await get(session, f"{small}/reset?user_id=b&seed=3")
    assert again == before
    assert (await get(session, f"{small}/predict?user_id=b&predicted_score=1"))[2] == rated


@pytest.mark.parametrize("score", ["0.761", "-3", "+2", "%2B2", "1e3", ".5", "5.", "1E-2"])
async def test_every_way_to_write_a_finite_number_is_taken(
    session: aiohttp.ClientSession, small: str, score: str
) -> None:
    from yarl import URL

    await get(session, f"{small}/reset?user_id=%20%C3%A9")
    url = URL(f"{small}/predict?user_id=%20%C3%A9&predicted_score={score}", encoded=True)
    status, _, document = await get(session, str(url))
    # An unescaped plus is a blank in a query, as in every form.
    expected = 400 if score.startswith("+") else 200
    assert status == expected, document


async def test_unknown_paths_and_methods(session: aiohttp.ClientSession, small: str) -> None:
    status, kind, document = await get(session, f"{small}/nothing")
    assert (status, kind, document["code"]) == (404, "application/problem+json", "not_found")
    async with session.post(f"{small}/reset?user_id=a") as response:
        assert response.status == 405
        assert "GET" in response.headers["Allow"]
        assert response.content_type == "application/problem+json"


async def test_a_bug_is_answered_with_a_problem(
    session: aiohttp.ClientSession,
    small: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def fail(*_: object) -> bytes:
        raise RuntimeError("secret")

    monkeypatch.setattr("environment.games.Games.reset", fail)
    status, kind, document = await get(session, f"{small}/reset?user_id=a")
    assert (status, kind, document["code"]) == (500, "application/problem+json", "internal_error")
    assert "secret" not in document["detail"]
    assert "request failed" in caplog.text
