"""Lists by relevance and rating together, beside a slow ranking of all items."""

from copy import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from factors import Bools, Float64s, Histories, Int64s, Link, Ranker, Ratings, Scale, Scorer, posterior_of
from factors.inference.histories import compress_pairs
from factors.ranking.head import RankingHead
from factors.ranking.parameters import RankingChoices
from factors.ranking.training import fit_with
from factors.serving.blended import Blended, BlendedRanker
from factors.serving.compiled_lists import LOOPS, list_loops
from factors.serving.ivf_index import Index, index_of
from tests.support.factories import make_items, make_model

ITEMS, USERS = 3_000, 60
NOTHING = np.zeros(0, dtype=np.int64)


class World:
    def __init__(self) -> None:
        rng = np.random.default_rng(8)
        model = make_model()
        self.posterior = posterior_of(model)
        self.items = make_items(model, ITEMS)
        self.items[:, 2:5] += rng.normal(0.0, 0.8, (ITEMS, 3)).astype(np.float32)
        self.scorer = Scorer(self.posterior, self.items)
        self.group = group = rng.integers(0, 20, ITEMS)
        taste = rng.integers(0, 20, (USERS, 3))
        rows = [rng.permutation(np.flatnonzero(np.isin(group, liked)))[:60] for liked in taste]
        user_row = np.repeat(np.arange(USERS, dtype=np.int32), 60)
        item_row = np.concatenate(rows).astype(np.int32)
        value = rng.integers(1, 6, len(item_row)).astype(np.float64)
        ratings = Ratings(user_row, item_row, value, np.full(len(item_row), np.nan))
        pairs = compress_pairs(user_row, item_row, ratings.value, ratings.time, USERS)
        fitted = fit_with(pairs, ITEMS, RankingChoices(sparse_weight=0.5), rng=rng)
        self.head: RankingHead = fitted.head
        self.histories = Histories(np.arange(0, 60 * USERS + 1, 60), item_row, value, ratings.time)
        self.users = self.posterior.fold_in_users(self.items, self.histories)

    def history(self, user: int) -> Histories:
        return self.histories.part(user, user + 1)

    def parts(self, user: int) -> tuple[Float64s, Float64s]:
        relevance = self.head.scores(self.history(user), np.arange(ITEMS))
        index = np.zeros(ITEMS, dtype=np.int64)
        return relevance, self.scorer.rating(self.users[user : user + 1], index, np.arange(ITEMS))

    def scores(self, user: int) -> Float64s:
        pairs = zip(*(part.tolist() for part in self.parts(user)), strict=True)
        return np.array([max(s, 0.0) * r**self.head.parameters.gamma for s, r in pairs])

    def assert_best(self, user: int, found: Blended, n: int, passing: Bools) -> None:
        """`found` are the best `n` of those that pass; equal ones may stand in either order."""
        scores, rows = self.scores(user), found.item_rows
        assert len(set(rows.tolist())) == len(rows) == min(n, int(passing.sum()))
        assert passing[rows].all()
        best = np.sort(scores[passing])[::-1][: len(rows)]
        np.testing.assert_allclose(scores[rows], best, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found.scores, best, rtol=1e-4, atol=1e-5)

    def having(self, gamma: float, link: Link = "gaussian") -> "World":
        """The same with another exponent of the ratings, and another link."""
        other = copy(self)
        other.head = replace(self.head, parameters=replace(self.head.parameters, gamma=gamma))
        other.posterior = posterior_of(make_model(scale=Scale(1, 5, 1), link=link))
        other.scorer = Scorer(other.posterior, self.items)
        other.users = other.posterior.fold_in_users(self.items, self.histories)
        return other


@pytest.fixture(scope="module")
def world() -> World:
    return World()


@pytest.fixture(scope="module")
def index(world: World) -> Index:
    vectors = world.head.fold_in_users(world.histories).astype(np.float32)
    built = index_of(world.head.items, vectors, np.random.default_rng(1), least_items=100)
    assert built is not None
    return built


def ask(
    world: World, ranker: BlendedRanker, user: int, n: int, exclude: Int64s = NOTHING, **how: Any
) -> Blended:
    users, history = world.users[user : user + 1], world.history(user)
    return ranker.top(world.scorer, users, history, n, [exclude], **how)[0]


@pytest.mark.parametrize("link", ["gaussian", "ordinal"])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 6.0])
def test_a_list_is_what_ranking_every_item_gives(world: World, gamma: float, link: Link) -> None:
    other, every = world.having(gamma, link), np.ones(ITEMS, dtype=np.bool_)
    ranker = BlendedRanker(other.head, other.posterior)
    bounds = Ranker(other.posterior, other.items).rating_bounds
    for user in (0, 7):
        seen = other.history(user).other_row.astype(np.int64)
        unseen = every.copy()
        unseen[seen] = False
        for n in (1, 10, 400, ITEMS + 5):
            other.assert_best(user, ask(other, ranker, user, n), n, every)
            other.assert_best(user, ask(other, ranker, user, n, seen), n, unseen)
        for share in (0.01, 0.3):
            mask = np.random.default_rng(2).random(ITEMS) < share
            other.assert_best(user, ask(other, ranker, user, 10, allowed=mask), 10, mask)
        few = ask(other, ranker, user, 50, allowed=mask[:40])
        assert sorted(few.item_rows.tolist()) == np.flatnonzero(mask[:40]).tolist()
        # Bounds of ratings change no list: they are bounds, and so tight as to be of use.
        other.assert_best(user, ask(other, ranker, user, 10, bounds=bounds), 10, every)
        highest, (_, rating) = bounds.highest(other.users[user], np.arange(ITEMS)), other.parts(user)
        assert (highest >= rating).all()
        assert np.median(highest - rating) < 0.2
    # Nothing is known of what is not in the table.
    assert bounds.highest(other.users[0], np.array([ITEMS]))[0] == 5.0


@pytest.mark.parametrize("kind", ["python", "compiled"])
@pytest.mark.parametrize(("gamma", "link"), [(0.0, "gaussian"), (0.25, "ordinal"), (3.0, "gaussian")])
def test_loops_find_the_lists_of_numpy(
    world: World, index: Index, monkeypatch: pytest.MonkeyPatch, *, kind: str, gamma: float, link: Link
) -> None:
    monkeypatch.setattr("factors.serving.mean_table.FEW_ALLOWED", 0)
    other = world.having(gamma, link)
    # A boost, so that events have weights, and an item that neither table knows of yet.
    head = replace(other.head, parameters=replace(other.head.parameters, recency_boost=1.0))
    bounds = Ranker(other.posterior, world.items[:-20]).rating_bounds
    loops = {loop: loop for loop in LOOPS} if kind == "python" else list_loops()
    plain, ranker = (BlendedRanker(head, other.posterior, index, loops=each) for each in ({}, loops))
    for each in (plain, ranker):
        grown = each.with_room(ITEMS + 3)
        grown.items[ITEMS + 1] = 3.0 * head.items[world.history(6).other_row[0]]
        each.follow(np.array([ITEMS + 1]), grown)
    mask = np.random.default_rng(2).random(ITEMS) < 0.3
    mask.flags.writeable = False
    by_numpy: list[bool] = []
    slowly = BlendedRanker._slowly

    def counted(self: BlendedRanker, call: Any, *rest: Any) -> Blended:
        if self is ranker:
            by_numpy.append(call.allowed is not None)
        return slowly(self, call, *rest)

    monkeypatch.setattr(BlendedRanker, "_slowly", counted)
    some = [0, 6, 21] if kind == "python" else range(0, USERS, 3)
    for user in some:
        for allowed in (None, mask):
            for exclude in (NOTHING, np.append(world.history(user).other_row[:30], ITEMS + 50)):
                one, found = (
                    ask(other, each, user, 3, exclude, allowed=allowed, bounds=bounds)
                    for each in (plain, ranker)
                )
                # Rows may differ among equal scores alone.
                np.testing.assert_allclose(found.scores, one.scores, rtol=1e-4)
                scores = np.maximum(found.relevance, 0.0) * found.rating**gamma
                np.testing.assert_allclose(found.scores, scores, rtol=1e-4)
                assert not np.intersect1d(found.item_rows, exclude).size
    # They are what answers most: of so few items a mask leaves too little, and of some no rating is bounded.
    assert by_numpy.count(False) <= len(some)
    assert by_numpy.count(True) < 2 * len(some)


def test_a_draw_shows_items_without_events_as_often_as_any_and_others_as_expected(world: World) -> None:
    head = replace(world.having(0.0).head, items=world.head.items.copy())
    events = np.full(ITEMS, 1e6)
    head.items[2_700:] = events[2_700:] = 0.0
    ranker = BlendedRanker(head, world.posterior)

    def shown(**how: Any) -> int:
        draws = [ask(world, ranker, 2, 10, rng=np.random.default_rng(k), **how) for k in range(100)]
        return sum(int((each.item_rows >= 2_700).sum()) for each in draws)

    # A tenth of the items, of 1,000 shown.
    assert 70 <= shown(events=events) <= 130
    # With as many events as the others they are what their factors say: relevant to no user.
    assert shown(events=np.full(ITEMS, 1e6)) == shown() == 0
    # One event, which says that they are not, takes half of the chance.
    assert 35 <= shown(events=np.where(events == 0, 1.0, events)) <= 80


@pytest.mark.parametrize("indexed", [False, True])
def test_new_and_changed_items_are_followed(world: World, index: Index, indexed: bool) -> None:
    ranker = BlendedRanker(replace(world.head, items=world.head.items.copy()), world.posterior)
    if indexed:
        ranker = BlendedRanker(ranker.head, world.posterior, index)
    liked = world.history(4).other_row[:1].astype(np.int64)
    # A new item and a known one that are chosen as the user's own is, only more.
    news = np.array([ITEMS + 2, 17], dtype=np.int64)
    head = ranker.with_room(ITEMS + 3)
    head.items[news] = 3.0 * world.head.items[liked]
    ranker.follow(news, head)
    items = np.concatenate([world.items, np.tile(world.posterior.prior_item, (3, 1))])
    scorer = Scorer(world.posterior, items)
    history = world.history(4)
    found = ranker.top(scorer, world.users[4:5], history, 5, [history.other_row])[0]
    assert {ITEMS + 2, 17} <= set(found.item_rows.tolist())
    # An item of which nothing is known is relevant to no user, and no history is hurt by it.
    more = Histories(np.array([0, 2]), np.array([ITEMS, 5], np.int32), np.ones(2), np.full(2, np.nan))
    every = ranker.top(scorer, world.users[4:5], more, ITEMS + 3, [NOTHING])[0]
    assert len(every.item_rows) == ITEMS + 3
    assert every.relevance[every.item_rows == ITEMS] == 0.0
