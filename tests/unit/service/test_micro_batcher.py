"""The micro-batch: what arrives together is asked together, scored together, and fails together."""

import asyncio
from typing import Any, cast

import msgspec
import numpy as np
import pytest

from factors import Histories, Int64s, Ranker, Scorer, posterior_of
from featurestore.codecs import pack_records
from featurestore.errors import StoreUnavailable
from featurestore.experiments.definition import Experiments
from featurestore.generations.follower import Follower
from featurestore.generations.live import LiveGeneration
from featurestore.id_columns import Ids
from featurestore.store import Store
from featurestore.users import counter_rule
from featurestore.users.copies import UserCopies
from featurestore.users.counter_rule import UserLookup
from featurestore.users.records import CurrentUsers
from service.experiments.counting import ArmCounts
from service.http.problems import Problem
from service.metrics import Counts, error_bounds
from service.micro_batcher import MicroBatcher
from service.scoring import PairScorer
from tests.support.factories import make_items, make_model

MODEL = make_model()
ITEMS = make_items(MODEL, 8)
POSTERIOR = posterior_of(MODEL)
USERS = POSTERIOR.fold_in_users(
    ITEMS,
    Histories(
        np.array([0, 2, 4]),
        np.array([0, 1, 2, 3], np.int32),
        np.array([5.0, 1.0, 2.0, 4.0]),
        np.full(4, np.nan),
    ),
)


class FakeRegistry:
    def __init__(self) -> None:
        self.asked: list[list[bytes]] = []

    def row(self, item_id: bytes) -> int | None:
        return int(item_id) if item_id.isdigit() else None

    def find(self, item_ids: Ids) -> Int64s:
        return np.array([-1 if row is None else row for row in map(self.row, item_ids)], dtype=np.int64)

    async def rows(self, item_ids: list[bytes]) -> list[int | None]:
        self.asked.append(item_ids)
        return [
            self.row(item_id) if item_id.isdigit() else (7 if item_id == b"new" else None)
            for item_id in item_ids
        ]


class FakeUsers:
    """User `0` is current, `1` is behind, any other unknown."""

    def __init__(self) -> None:
        self.lookups: list[list[bytes]] = []
        self.caught_up: list[list[bytes]] = []
        self.failure: Exception | None = None
        self.copies: UserCopies | None = None
        self.moved = False

    async def lookup(self, live: LiveGeneration, user_ids: list[bytes]) -> UserLookup:
        self.lookups.append(list(user_ids))
        await asyncio.sleep(0)
        if self.failure is not None:
            raise self.failure
        record = pack_records(np.array([3]), USERS[:1])[0]
        stored = {b"0": [b"3", record], b"1": [b"4", None]}
        replies = [stored.get(user_id, [None, None]) for user_id in user_ids]
        return counter_rule.apply(live, user_ids, replies)

    async def catch_up(self, live: LiveGeneration, lookup: UserLookup) -> CurrentUsers:
        self.caught_up.append(lookup.behind_ids)
        vectors = lookup.vectors.copy()
        vectors[lookup.behind] = USERS[1]
        folded = np.zeros(len(vectors), dtype=np.bool_)
        folded[lookup.behind] = True
        return CurrentUsers(lookup.n, vectors, folded)

    async def current_distinct(self, live: LiveGeneration, user_ids: Ids) -> tuple[CurrentUsers, Int64s]:
        users = list(dict.fromkeys(user_ids))
        rows = [1 if user_id == b"1" else 0 for user_id in users]
        current = CurrentUsers(np.array(rows), USERS[rows], np.array(rows, dtype=bool))
        return current, np.array([users.index(each) for each in user_ids], dtype=np.int64)


class FakeStore:
    def apart(self, _epoch: int, user_ids: list[bytes]) -> list[list[int]]:
        return [list(range(len(user_ids)))]

    def __init__(self) -> None:
        self.users, self.registry = FakeUsers(), FakeRegistry()

    def items(self, epoch: int) -> FakeRegistry:
        return self.registry


class FakeFollower:
    def __init__(self, live: LiveGeneration | None) -> None:
        self.live = live
        self.experiments = Experiments()


def live_generation(number: int = 42) -> LiveGeneration:
    return LiveGeneration(
        1,
        number,
        POSTERIOR,
        ITEMS,
        len(ITEMS),
        Scorer(POSTERIOR, ITEMS),
        Ranker(POSTERIOR, ITEMS),
        cast("Any", None),
    )


def make_batcher(live: LiveGeneration | None = None) -> tuple[MicroBatcher, FakeStore, FakeFollower]:
    store, follower = FakeStore(), FakeFollower(live)
    counts = Counts(0, 0.0, error_bounds(1, 5))
    batcher = MicroBatcher(cast("Store", store), cast("Follower", follower), counts, ArmCounts())
    return batcher, store, follower


def expected(user: int, item: int) -> float:
    return float(Scorer(POSTERIOR, ITEMS).score(USERS, np.array([user]), np.array([item])).rating[0])


async def test_what_arrives_in_one_turn_is_asked_in_one_read() -> None:
    batcher, store, _ = make_batcher(live_generation())
    pairs = [(user, item) for user in (b"0", b"1", b"unknown") for item in (b"2", b"new", b"none")]
    answers = await asyncio.gather(*(batcher.submit(*pair) for pair in pairs))
    assert len(store.users.lookups) == 1
    assert len(store.users.lookups[0]) == 9
    assert answers[0].rating == pytest.approx(expected(0, 2))
    assert answers[1].rating == pytest.approx(expected(0, 7))
    assert answers[3].rating == pytest.approx(expected(1, 2))
    assert [answer.basis for answer in answers[6:7]] == ["item"]
    assert {answer.generation for answer in answers} == {42}
    # Only user 1 is behind; pairs whose item is not known here yet wait for the registry alone.
    assert store.users.caught_up == [[b"1", b"1", b"1"]]
    assert store.registry.asked == [[b"new", b"none"] * 3]


async def test_a_turn_is_answered_by_the_generation_of_its_end() -> None:
    batcher, _, follower = make_batcher(live_generation(1))
    future = batcher.submit(b"0", b"1")
    await asyncio.sleep(0)
    follower.live = live_generation(2)
    assert (await future).generation == 1
    assert (await batcher.submit(b"0", b"1")).generation == 2


async def test_a_store_that_fails_fails_each_request_with_its_own_problem() -> None:
    batcher, store, _ = make_batcher(live_generation())
    store.users.failure = StoreUnavailable("gone", 2.0)
    found = await asyncio.gather(
        batcher.submit(b"0", b"1"), batcher.submit(b"1", b"1"), return_exceptions=True
    )
    assert [type(each) for each in found] == [Problem, Problem]
    assert found[0] is not found[1]
    assert cast("Problem", found[0]).headers["Retry-After"] == "2"


async def test_while_the_store_is_away_copies_answer_and_say_so() -> None:
    live = live_generation()
    batcher, store, _ = make_batcher(live)
    before = await batcher.submit(b"0", b"1")
    assert not before.degraded
    assert b"degraded" not in msgspec.json.encode(before)
    copies = store.users.copies = UserCopies()
    copies.keep(live, [b"0"], pack_records(np.array([3]), USERS[:1]))
    store.users.failure = StoreUnavailable("gone")
    # One who was read, one who was not, and an item that only the store could tell.
    known, unknown, item = await asyncio.gather(
        batcher.submit(b"0", b"1"), batcher.submit(b"2", b"1"), batcher.submit(b"0", b"new")
    )
    assert (known.rating, known.std, known.basis) == (before.rating, before.std, "user+item")
    assert (unknown.basis, item.basis) == ("item", "user")
    assert all(each.degraded and each.generation == live.generation for each in (known, unknown, item))
    assert b'"degraded":true' in msgspec.json.encode(known)


async def test_a_fold_in_that_the_store_cuts_off_is_answered_by_copies() -> None:
    live = live_generation()
    batcher, store, _ = make_batcher(live)
    store.users.copies = UserCopies()

    async def cut_off(live: LiveGeneration, lookup: UserLookup) -> CurrentUsers:
        raise StoreUnavailable("gone")

    store.users.catch_up = cut_off  # type: ignore[method-assign]  # what follows a lookup that was answered
    behind, current = await asyncio.gather(batcher.submit(b"1", b"1"), batcher.submit(b"0", b"1"))
    assert (behind.degraded, behind.basis) == (True, "item")
    assert not current.degraded


async def test_the_end_fails_what_waits() -> None:
    batcher, _, _ = make_batcher(live_generation())
    looked_up = batcher.submit(b"0", b"1")
    await asyncio.sleep(0)
    comes_meanwhile = batcher.submit(b"0", b"2")
    await batcher.close()
    for each in (looked_up, comes_meanwhile):
        with pytest.raises(Problem, match="the service ends"):
            await each


async def test_slices_of_a_large_call_are_one_array() -> None:
    live = live_generation()
    scorer = PairScorer(cast("Store", FakeStore()), Counts(0, 0.0, error_bounds(1, 5)))
    count = 5000
    body = await scorer.predict_batch(live, Ids.of([b"0", b"1"] * (count // 2)), Ids.of([b"3"] * count))
    ratings = [each["rating"] for each in msgspec.json.decode(body)["predictions"]]
    assert ratings == pytest.approx([expected(0, 3), expected(1, 3)] * (count // 2))
