"""The games: the world event by event, tokens apart, the longest silent one forgotten, memory bounded."""

from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor

import msgspec
import pytest

from environment.games import (
    WINDOW_STEPS,
    Games,
    NoPairLeftError,
    UnknownTokenError,
)
from environment.world import WorldOptions, make_world

SMALL = WorldOptions(n_users=5, n_items=8, n_known=10)


@pytest.fixture
def executor() -> Iterator[Executor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


def make_games(
    executor: Executor, options: WorldOptions = SMALL, *, seed: int | None = 1, max_tokens: int = 10
) -> Games:
    return Games(options=options, seed=seed, max_tokens=max_tokens, executor=executor)


async def test_a_game_is_the_world_event_by_event_across_windows(executor: Executor) -> None:
    options = WorldOptions(n_users=30, n_items=60, n_known=100, late_users=0.3, drift=0.5, noise=0.3)
    games, world = make_games(executor, options), make_world(77, options)
    answer = msgspec.json.decode(await games.reset("a", 77))
    assert answer["user_history"] == world.user[:100].tolist()
    assert answer["item_history"] == world.item[:100].tolist()
    assert answer["rating_history"] == world.rating[:100].tolist()
    pending = (answer["next_user"], answer["next_item"])
    assert 3 * WINDOW_STEPS < 1_700
    for event in range(100, 1_800):
        assert pending == (world.user[event], world.item[event])
        rated = await games.rate("a")
        assert rated.rating == world.rating[event]
        pending = (rated.next_user, rated.next_item)
    assert pending == (None, None)
    with pytest.raises(NoPairLeftError):
        await games.rate("a")


async def test_tokens_are_independent_and_seeds_repeat(executor: Executor) -> None:
    games, alone = make_games(executor), make_games(executor)
    a, b = await games.reset("a"), await games.reset("b")
    assert a != b
    assert await alone.reset("b") == b
    expected = [await alone.rate("b") for _ in range(5)]
    for each in expected:
        await games.rate("a")
        assert await games.rate("b") == each
    # Another reset is another world; a seed that is asked for gives two tokens the same one.
    assert await games.reset("a") != a
    assert await games.reset("a", 5) == await games.reset("c", 5)
    unseeded = [await make_games(executor, seed=None).reset("a") for _ in range(2)]
    assert unseeded[0] != unseeded[1]


async def test_the_longest_silent_token_makes_room(executor: Executor) -> None:
    games = make_games(executor, max_tokens=3)
    for token in "abc":
        await games.reset(token)
    await games.rate("a")
    await games.reset("d")
    assert len(games) == 3
    with pytest.raises(UnknownTokenError):
        await games.rate("b")
    for token in "acd":
        await games.rate(token)
