"""The counter rule against a dictionary, on a real store: in any order, and with actors that are slow."""

import asyncio
import itertools
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings, stateful
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from factors import Float32s, posterior_of
from featurestore import codecs
from featurestore.codecs import History
from featurestore.generations.live import LiveGeneration
from featurestore.generations.manifest import GenerationMeta, Kept
from featurestore.generations.writer import GenerationWriter
from featurestore.leases import Lease
from featurestore.settings import StoreSettings
from featurestore.store import Store
from featurestore.users.fold_in import StaleUser, fold_in
from featurestore.users.histories import Look
from tests.support.factories import SCALE, Written, as_live, lead, make_draft, make_items, make_model, rating
from tests.support.servers import StoreServer

USERS = ("u0", "u1")
ITEMS = ("i0", "i1", "i2")
MODEL = make_model()
NUMBERS = itertools.count()


@dataclass
class Person:
    n: int = 0
    known: bool = False
    holds: dict[str, float] = field(default_factory=dict)


@dataclass
class Fit:
    """A generation that a trainer works on, with what it saw of each user when it began."""

    writer: GenerationWriter
    items: Float32s
    seen: dict[str, tuple[int, History]]
    meta: GenerationMeta | None = None


class CounterRule(RuleBasedStateMachine):
    url = ""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.people = {user: Person() for user in USERS}
        self.stores: list[Store] = []
        self.live: LiveGeneration | None = None
        self.whole: dict[int, LiveGeneration] = {}
        self.fits: list[Fit] = []
        self.late: list[tuple[LiveGeneration, str, StaleUser]] = []

    def do(self, coroutine: Any) -> Any:
        return self.loop.run_until_complete(coroutine)

    @initialize()
    def open(self) -> None:
        wanted = StoreSettings(url=self.url, namespace=f"rule-{next(NUMBERS)}", partitions=2, timeout_s=10.0)
        self.stores = [self.do(Store.open(wanted)), self.do(Store.open(wanted, hot=False))]
        self.do(self.stores[0].items(1).register([item.encode() for item in ITEMS]))
        self.lease: Lease = self.do(lead(self.stores[0]))
        self.begin_fit(0)
        self.finish_fit(0)

    def store(self, which: bool) -> Store:
        found: Store = self.stores[which]
        return found

    @rule(
        which=st.booleans(),
        user=st.sampled_from(USERS),
        item=st.sampled_from(ITEMS),
        value=st.sampled_from([1.0, 2.0, 3.0, 4.0, 5.0, math.nan, math.nan]),
        times=st.sampled_from([1, 1, 1, 70]),
    )
    def rate(self, which: bool, user: str, item: str, value: float, times: int) -> None:
        """Rate, rate again, or take a rating back, given or not; often enough for a compaction."""
        self.do(self.store(which).ratings.append([rating(user, item, value)] * times))
        person = self.people[user]
        person.n += times
        person.known = True
        person.holds.pop(item, None)
        if not math.isnan(value):
            person.holds[item] = value

    @rule(which=st.booleans(), user=st.sampled_from(USERS))
    def forget(self, which: bool, user: str) -> None:
        """Forget; `n` goes on where it was should the user come back."""
        person = self.people[user]
        receipt = self.do(self.store(which).ratings.forget(user.encode()))
        assert receipt.ratings == len(person.holds)
        assert receipt.n == person.n
        person.holds.clear()
        person.known = False

    @rule(seed=st.integers(0, 5))
    def begin_fit(self, seed: int) -> None:
        """A trainer begins to fit what it sees now; an older fit can no longer finish."""
        store = self.store(False)
        seen = {user: self.do(store.users.history(1, user.encode())) for user in USERS}
        draft = make_draft(MODEL, len(USERS), len(ITEMS))
        writer = self.do(store.generations.begin(self.lease, draft, {0: "1-1"}))
        items = make_items(MODEL, len(ITEMS), seed)
        self.do(writer.write_items(items, MODEL))
        self.fits = [Fit(writer, items, seen)]
        there = {summary.generation for summary in self.do(store.generations.list())}
        self.whole = {number: live for number, live in self.whole.items() if number in there}

    @precondition(lambda self: self.fits)
    @rule(some=st.integers(1, 2 ** len(USERS) - 1))
    def finish_fit(self, some: int) -> None:
        """The fit ends and goes live, with what it saw then, however much has happened since."""
        fit = self.fits.pop()
        users = [user for bit, user in enumerate(USERS) if some >> bit & 1 and fit.seen[user][0]]
        histories = [fit.seen[user][1] for user in users]
        if users:
            vectors = posterior_of(MODEL).fold_in_users(fit.items, codecs.pack_histories(histories))
            n = np.array([fit.seen[user][0] for user in users], dtype=np.int64)
            self.do(fit.writer.write_users([user.encode() for user in users], n, vectors))
        meta = self.do(fit.writer.finish())
        assert self.do(fit.writer.flip(automatic=False))
        self.serve(as_live(Written(fit.writer, MODEL, fit.items, meta)))

    @precondition(lambda self: len(self.whole) > 1)
    @rule(data=st.data())
    def activate(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.whole)))
        self.do(self.store(True).generations.activate(number, hold=False))
        self.serve(self.whole[number])

    def serve(self, live: LiveGeneration) -> None:
        self.live = self.whole[live.generation] = live
        numbers = [summary.generation for summary in self.do(self.store(False).generations.list())]
        kept = Kept(frozenset(numbers))
        for store in self.stores:
            store.users.kept = kept

    @rule(which=st.booleans(), users=st.lists(st.sampled_from([*USERS, "stranger"]), min_size=1, max_size=4))
    def read(self, which: bool, users: list[str]) -> None:
        assert self.live is not None
        current = self.do(self.store(which).users.current(self.live, [user.encode() for user in users]))
        for position, user in enumerate(users):
            person = self.people.get(user, Person())
            assert current.n[position] == (person.n if person.known else 0)
            np.testing.assert_allclose(current.vectors[position], self.truth(person), rtol=1e-4, atol=1e-5)

    @rule(which=st.booleans(), user=st.sampled_from(USERS))
    def read_profile(self, which: bool, user: str) -> None:
        assert self.live is not None
        person = self.people[user]
        profile = self.do(self.store(which).users.profile(self.live, user.encode()))
        assert profile.n == (person.n if person.known else 0)
        found = {
            ITEMS[row]: value
            for row, value in zip(profile.history.item_row, profile.history.rating, strict=True)
        }
        assert found == person.holds
        np.testing.assert_allclose(profile.vector, self.truth(person), rtol=1e-4, atol=1e-5)

    @rule(user=st.sampled_from(USERS))
    def read_slowly(self, user: str) -> None:
        """A reader has read a user and folds it in; it will hand the record back later."""
        assert self.live is not None
        store = self.store(True)
        user_id = user.encode()
        n, _ = self.do(store.users.history(1, user_id))
        if self.people[user].known:
            data = self.do(store.redis.get(store.keys.history(1, user_id))) or b""
            self.late.append((self.live, user, StaleUser(user_id, Look(n, None, data, len(data)), data)))

    @precondition(lambda self: self.late)
    @rule()
    def hand_back_late(self) -> None:
        """Whatever happened since, no old record and no old history comes back by it."""
        live, _, behind = self.late.pop(0)
        store = self.store(True)
        store.users.write_back(
            live, [behind], fold_in(live, [behind], [codecs.unpack_history(behind.history, SCALE)])
        )
        self.do(store.users.history(1, b"settled"))

    def truth(self, person: Person) -> Float32s:
        assert self.live is not None
        if not person.known:
            prior: Float32s = self.live.posterior.prior_user
            return prior
        rows = np.array([ITEMS.index(item) for item in person.holds], dtype=np.int32)
        history = History(rows, np.array([*person.holds.values()], np.float64), np.full(len(rows), 1e9))
        folded = self.live.posterior.fold_in_users(self.live.items, codecs.pack_histories([history]))
        row: Float32s = folded[0]
        return row

    def teardown(self) -> None:
        try:
            if self.live is not None:
                for which in (False, True):
                    self.read(which, list(USERS))
        finally:
            for store in self.stores:
                self.do(store.close())
            self.loop.close()


@pytest.fixture
def rule_machine(store_server: StoreServer) -> type[CounterRule]:
    return type("CounterRuleHere", (CounterRule,), {"url": store_server.url})


@pytest.mark.timeout(300)
@pytest.mark.parametrize("examples", [2, pytest.param(25, marks=pytest.mark.slow)])
def test_a_reader_gets_what_the_ratings_say(rule_machine: type[CounterRule], examples: int) -> None:
    stateful.run_state_machine_as_test(
        rule_machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=40,
            # Shrinking on a real store outlasts the test's timeout; forty steps can be read as they are.
            phases=(Phase.explicit, Phase.reuse, Phase.generate),
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )
