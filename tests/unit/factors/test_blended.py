"""Lists by relevance and rating together, beside a slow ranking of all items."""

from copy import copy
from dataclasses import replace
from importlib.util import find_spec
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import pytest

from factors import (
    Bools,
    Float32s,
    Float64s,
    Histories,
    Int64s,
    PosteriorModel,
    Ranker,
    Ratings,
    Scale,
    Scorer,
    posterior_of,
)
from factors.inference.compiled.loading import Kernel
from factors.inference.histories import compress_pairs
from factors.ranking.blending import blended, highest_scores
from factors.ranking.choices import RankingChoices
from factors.ranking.head import RankingHead
from factors.ranking.training import fit_with
from factors.serving.blended import Blended, BlendedRanker, _drawn
from factors.serving.compiled_lists import LOOPS, list_loops
from factors.serving.ivf_index import Index, index_of
from factors.serving.mean_table import MeanTable, Products
from factors.serving.rating_bounds import RatingBounds
from tests.support.factories import make_items, make_model

ITEMS, USERS = 3_000, 60
NOTHING = np.zeros(0, dtype=np.int64)


class World:
    """A head and a model of the ratings, neither of them good, and users with histories."""

    def __init__(self) -> None:
        rng = np.random.default_rng(8)
        model = make_model()
        self.posterior: PosteriorModel = posterior_of(model)
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
        part = slice(60 * user, 60 * user + 60)
        data = self.histories
        return Histories(np.array([0, 60]), data.other_row[part], data.value[part], data.time[part])

    def parts(self, user: int) -> tuple[Float64s, Float64s]:
        """Relevance and rating of every item."""
        relevance = self.head.scores(self.history(user), np.arange(ITEMS))
        index = np.zeros(ITEMS, dtype=np.int64)
        return relevance, self.scorer.rating(self.users[user : user + 1], index, np.arange(ITEMS))

    def scores(self, user: int) -> Float64s:
        """The score of every item on a scale that begins above 0."""
        pairs = zip(*(part.tolist() for part in self.parts(user)), strict=True)
        return np.array([max(s, 0.0) * r**self.head.parameters.gamma for s, r in pairs])

    def slowly(self, user: int, n: int, exclude: Int64s, allowed: Bools | None = None) -> list[int]:
        """The best `n` by relevance and rating of every item."""
        score, (relevance, rating) = self.scores(user), self.parts(user)
        rows = sorted(range(ITEMS), key=lambda row: (-score[row], -relevance[row], -rating[row], row))
        barred = set(exclude.tolist())
        return [row for row in rows if row not in barred and (allowed is None or allowed[row])][:n]


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
    world: World,
    ranker: BlendedRanker,
    user: int,
    n: int,
    *,
    exclude: Int64s = NOTHING,
    bounds: RatingBounds | None = None,
) -> Blended:
    users, history = world.users[user : user + 1], world.history(user)
    return ranker.top(world.scorer, users, history, n, [exclude], bounds=bounds)[0]


@pytest.mark.parametrize("gamma", [0.0, 0.5, 6.0])
@pytest.mark.parametrize("n", [1, 10, 400, ITEMS + 5])
def test_a_list_is_what_ranking_every_item_gives(world: World, n: int, gamma: float) -> None:
    parameters = replace(world.head.parameters, gamma=gamma)
    head = replace(world.head, parameters=parameters)
    other = copy(world)
    other.head = head
    ranker = BlendedRanker(head, world.posterior)
    for user in (0, 7):
        found, slow = ask(other, ranker, user, n), other.slowly(user, n, NOTHING)
        # Items whose scores float32 does not tell apart may stand in either order, and of all there are many.
        np.testing.assert_allclose(found.scores, other.scores(user)[slow], rtol=1e-4, atol=1e-5)
        assert np.mean(found.item_rows == slow) > (0.9 if n < 400 else 0.75)
        assert len(found.item_rows) == len(set(found.item_rows.tolist())) == min(n, ITEMS)


def test_users_of_a_block_are_ranked_as_alone(world: World) -> None:
    ranker = BlendedRanker(world.head, world.posterior)
    exclude = [world.history(user).other_row for user in range(USERS)]
    together = ranker.top(world.scorer, world.users, world.histories, 10, exclude)
    for user in range(0, USERS, 7):
        alone = ask(world, ranker, user, 10, exclude=exclude[user].astype(np.int64))
        np.testing.assert_array_equal(together[user].item_rows, alone.item_rows)
        assert not np.intersect1d(alone.item_rows, exclude[user]).size
        expected = world.slowly(user, 10, exclude[user].astype(np.int64))
        np.testing.assert_array_equal(alone.item_rows, expected)


@pytest.mark.parametrize("gamma", [0.25, 6.0])
@pytest.mark.parametrize("link", ["gaussian", "ordinal"])
def test_bounds_of_ratings_change_no_list(
    world: World, link: Literal["gaussian", "ordinal"], gamma: float
) -> None:
    posterior = posterior_of(make_model(scale=Scale(1, 5, 1), link=link))
    other = copy(world)
    other.head = replace(world.head, parameters=replace(world.head.parameters, gamma=gamma))
    other.posterior, other.scorer = posterior, Scorer(posterior, world.items)
    other.users = posterior.fold_in_users(world.items, world.histories)
    ranker, bounds = BlendedRanker(other.head, posterior), Ranker(posterior, world.items).rating_bounds
    every = np.arange(ITEMS, dtype=np.int64)
    for user in range(0, USERS, 6):
        highest, (_, rating) = bounds.highest(other.users[user], every), other.parts(user)
        assert (highest >= rating).all()
        # As tight as to be of use.
        assert np.median(highest - rating) < 0.2
        plain, bounded = ask(other, ranker, user, 10), ask(other, ranker, user, 10, bounds=bounds)
        np.testing.assert_array_equal(plain.item_rows, bounded.item_rows)
        np.testing.assert_array_equal(bounded.item_rows, other.slowly(user, 10, NOTHING))
    # Nothing is known of what is not in the table.
    assert bounds.highest(other.users[0], np.array([ITEMS]))[0] == posterior.model.scale.high


def test_the_parts_of_a_score_make_it(world: World) -> None:
    found = ask(world, BlendedRanker(world.head, world.posterior), 3, 20)
    relevance = world.head.scores(world.history(3), found.item_rows)
    np.testing.assert_allclose(found.relevance, relevance, rtol=1e-4, atol=1e-6)
    gamma = world.head.parameters.gamma
    np.testing.assert_allclose(found.scores, np.maximum(found.relevance, 0) * found.rating**gamma)
    assert all(before >= after for before, after in pairwise(found.scores.tolist()))
    assert found.behind(15).item_rows.tolist() == found.item_rows[15:].tolist()


def loops_of(kind: str) -> dict[Kernel, Kernel]:
    """The loops as they are compiled, or as plain Python runs them."""
    if kind == "compiled" and find_spec("numba") is None:
        pytest.skip("numba is not installed (extra `fast`)")
    return {loop: loop for loop in LOOPS} if kind == "python" else list_loops()


@pytest.mark.parametrize("kind", ["python", "compiled"])
@pytest.mark.parametrize("gamma", [0.0, 0.25, 3.0])
@pytest.mark.parametrize("link", ["gaussian", "ordinal"])
def test_loops_find_the_lists_of_numpy(
    world: World,
    index: Index,
    monkeypatch: pytest.MonkeyPatch,
    *,
    kind: str,
    gamma: float,
    link: Literal["gaussian", "ordinal"],
) -> None:
    monkeypatch.setattr("factors.serving.mean_table.FEW_ALLOWED", 0)
    posterior = posterior_of(make_model(scale=Scale(1, 5, 1), link=link))
    scorer, users = Scorer(posterior, world.items), posterior.fold_in_users(world.items, world.histories)
    # A boost, so that events have weights, and an item that neither table knows of yet.
    parameters = replace(world.head.parameters, gamma=gamma, recency_boost=1.0)
    head = replace(world.head, parameters=parameters)
    bounds = Ranker(posterior, world.items[:-20]).rating_bounds
    plain = BlendedRanker(head, posterior, index, loops={})
    ranker = BlendedRanker(head, posterior, index, loops=loops_of(kind))
    for each in (plain, ranker):
        grown = each.with_room(ITEMS + 3)
        grown.items[ITEMS + 1] = 3.0 * head.items[world.history(6).other_row[0]]
        each.follow(np.array([ITEMS + 1]), grown)
    tenth = np.random.default_rng(2).random(ITEMS) < 0.3
    tenth.flags.writeable = False
    by_numpy: list[bool] = []
    slowly = BlendedRanker._slowly

    def counted(self: BlendedRanker, call: Any, *rest: Any) -> Blended:
        if self is ranker:
            by_numpy.append(call.allowed is not None)
        return slowly(self, call, *rest)

    monkeypatch.setattr(BlendedRanker, "_slowly", counted)
    some = [0, 6, 21] if kind == "python" else range(0, USERS, 3)
    for user in some:
        history = world.history(user)
        for allowed in (None, tenth):
            for exclude in (NOTHING, np.append(history.other_row[:30], ITEMS + 50)):
                asked = scorer, users[user : user + 1], history, 3, [exclude]
                one, other = (each.top(*asked, allowed=allowed, bounds=bounds)[0] for each in (plain, ranker))
                np.testing.assert_array_equal(other.item_rows, one.item_rows)
                np.testing.assert_allclose(other.scores, one.scores, rtol=1e-5)
                np.testing.assert_allclose(other.relevance, one.relevance, rtol=1e-5)
    # They are what answers most: of so few items a mask leaves too little, and of some no rating is bounded.
    assert by_numpy.count(False) <= len(some)
    assert by_numpy.count(True) < 2 * len(some)


def test_loops_fold_in_what_numpy_does(world: World, index: Index) -> None:
    loops = {loop: loop for loop in LOOPS}
    ranker = BlendedRanker(world.head, world.posterior, index, loops=loops)
    assert ranker._compiled is not None
    parts = [(60 * user, 60 * user + size) for user, size in enumerate((0, 1, 5, 60))]
    rows = np.concatenate([world.histories.other_row[a:b] for a, b in parts])
    offsets = np.concatenate([[0], np.cumsum([b - a for a, b in parts])])
    histories = Histories(offsets, rows, np.ones(len(rows)), np.full(len(rows), np.nan))
    found, _ = world.head.fold_in_events(histories, ranker._compiled.solve)
    np.testing.assert_allclose(found, world.head.fold_in_users(histories), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("share", [0.01, 0.3])
def test_a_mask_is_respected(world: World, share: float) -> None:
    allowed = np.random.default_rng(2).random(ITEMS) < share
    ranker = BlendedRanker(world.head, world.posterior)
    history = world.history(5)
    found = ranker.top(world.scorer, world.users[5:6], history, 10, [NOTHING], allowed=allowed)[0]
    np.testing.assert_array_equal(found.item_rows, world.slowly(5, 10, NOTHING, allowed))
    few = ranker.top(world.scorer, world.users[5:6], history, 50, [NOTHING], allowed=allowed[:40])[0]
    assert sorted(few.item_rows.tolist()) == np.flatnonzero(allowed[:40]).tolist()


def recall(world: World, ranker: BlendedRanker, allowed: Bools | None) -> float:
    hits = []
    for user in range(USERS):
        users, history = world.users[user : user + 1], world.history(user)
        seen = [history.other_row]
        exact = ranker.top(world.scorer, users, history, 10, seen, allowed=allowed, exact=True)[0]
        found = ranker.top(world.scorer, users, history, 10, seen, allowed=allowed)[0]
        hits.append(len(np.intersect1d(exact.item_rows, found.item_rows)) / 10)
    return float(np.mean(hits))


def test_the_index_finds_what_all_items_give(
    world: World, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("factors.serving.mean_table.FEW_ALLOWED", 0)
    ranker = BlendedRanker(world.head, world.posterior, index)
    assert recall(world, ranker, None) >= 0.95
    assert recall(world, ranker, np.random.default_rng(2).random(ITEMS) < 0.1) >= 0.95
    # Kinds that some users like and others do not: their best are far from where the index looks first.
    for kinds in ([3, 4], [7], [11, 12]):
        assert recall(world, ranker, np.isin(world.group, kinds)) >= 0.95


def test_more_candidates_are_from_the_lists_that_were_looked_into(
    world: World, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where ratings decide, many items could reach the list: reading them all is what an index saves."""
    # In this small world the lists for 50 candidates more would be most of all.
    monkeypatch.setattr("factors.serving.blended._SPARE", 8)
    head = replace(world.head, parameters=replace(world.head.parameters, gamma=6.0))
    other = copy(world)
    other.head = head
    plain, ranker = BlendedRanker(head, world.posterior), BlendedRanker(head, world.posterior, index)
    exact = [ask(other, plain, user, 3) for user in range(USERS)]
    read: list[int] = []
    product = MeanTable._exact

    def counted(self: MeanTable, features: Float32s, *rest: Any) -> list[Products]:
        read.append(len(features))
        return product(self, features, *rest)

    monkeypatch.setattr(MeanTable, "_exact", counted)
    found = [ask(other, ranker, user, 3) for user in range(USERS)]
    assert sum(read) == 0
    pairs = zip(exact, found, strict=True)
    assert np.mean([len(np.intersect1d(a.item_rows, b.item_rows)) / 3 for a, b in pairs]) >= 0.95


@pytest.mark.skipif(find_spec("numba") is None, reason="numba is not installed")
def test_a_list_under_a_mask_tells_beforehand_how_much_it_reads(
    world: World, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("factors.serving.mean_table.FEW_ALLOWED", 0)
    ranker = BlendedRanker(world.head, world.posterior, index)
    bounds = Ranker(world.posterior, world.items).rating_bounds
    mask = np.random.default_rng(5).random(ITEMS) < 0.9
    mask.flags.writeable = False
    user, history = world.users[4:5], world.history(4)
    asked = world.scorer, user, history, 3

    def within(most: int, allowed: Bools = mask) -> Blended | None:
        return ranker.top_within(*asked, NOTHING, most=most, allowed=allowed, bounds=bounds)

    # Not before it is known what a mask allows, and of one that may change it never is.
    assert within(ITEMS) is None
    assert ranker.multiplications(0, 3, 0, mask) > ranker.multiplications(0, 3, 0)
    (expected,) = ranker.top(*asked, [NOTHING], allowed=mask, bounds=bounds)
    assert ranker.multiplications(0, 3, 0, mask) < ranker.multiplications(0, 3, 0, mask.copy())
    assert within(ITEMS, mask.copy()) is None
    found = within(ITEMS)
    assert found is not None
    np.testing.assert_array_equal(found.item_rows, expected.item_rows)
    assert within(10) is None


def test_a_draw_changes_the_order_and_tells_the_expected_scores(world: World) -> None:
    ranker = BlendedRanker(world.head, world.posterior)
    users, history = world.users[2:3], world.history(2)

    def draw(seed: int) -> Blended:
        rng = np.random.default_rng(seed)
        return ranker.top(world.scorer, users, history, 10, [NOTHING], rng=rng)[0]

    plain, first, again, other = ask(world, ranker, 2, 10), draw(1), draw(1), draw(2)
    np.testing.assert_array_equal(first.item_rows, again.item_rows)
    assert first.item_rows.tolist() != other.item_rows.tolist()
    shared = np.intersect1d(plain.item_rows, first.item_rows)
    for row in shared.tolist():
        np.testing.assert_allclose(
            first.scores[first.item_rows == row], plain.scores[plain.item_rows == row], rtol=1e-6
        )
    relevance = world.head.scores(history, first.item_rows)
    np.testing.assert_allclose(first.relevance, relevance, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("gamma", [0.5, 6.0])
def test_pages_of_a_draw_join(world: World, gamma: float) -> None:
    head = replace(world.head, parameters=replace(world.head.parameters, gamma=gamma))
    ranker = BlendedRanker(head, world.posterior)

    def draw(n: int) -> list[int]:
        asked = world.scorer, world.users[2:3], world.history(2), n, [NOTHING]
        rows: list[int] = ranker.top(*asked, rng=np.random.default_rng(7))[0].item_rows.tolist()
        return rows

    longest = draw(400)
    assert len(set(longest)) == 400
    for n in (1, 10, 20, 200):
        assert draw(n) == longest[:n]


def test_draws_of_a_user_spread_as_the_head_is_unsure(world: World) -> None:
    history, rng, n = world.history(2), np.random.default_rng(0), 100
    mean = world.head.fold_in_users(history)
    values, directions = np.linalg.eigh(world.head.covariance(history))
    draws = np.concatenate([_drawn(world.head, history, mean, rng) for _ in range(n)])
    # In units of what the posterior says along each of its axes, of which it is least and most sure.
    apart = (draws - mean) @ directions / np.sqrt(values)
    half = apart.shape[1] // 2
    for some in (apart[:, :half], apart[:, half:]):
        assert abs(some.mean()) < 4 / np.sqrt(some.size)
        assert some.var() == pytest.approx(1.0, abs=4 * np.sqrt(2 / some.size))


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


def test_nothing_is_asked_and_nothing_is_there(world: World) -> None:
    ranker = BlendedRanker(world.head, world.posterior)
    none = np.zeros(ITEMS, dtype=np.bool_)
    assert ranker.top(world.scorer, world.users[:0], Histories(*no_history(0)), 5, []) == []
    assert len(ask(world, ranker, 1, 0).item_rows) == 0
    found = ranker.top(world.scorer, world.users[:1], world.history(0), 5, [NOTHING], allowed=none)[0]
    assert len(found.item_rows) == 0
    # Without a history the prior of the users ranks.
    prior = world.posterior.prior_user[None]
    assert len(ranker.top(world.scorer, prior, Histories(*no_history(1)), 5, [NOTHING])[0].item_rows) == 5


def no_history(users: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    return np.zeros(users + 1, np.int64), np.zeros(0, np.int32), np.zeros(0), np.zeros(0)


@pytest.mark.parametrize("scale", [Scale(1, 5, 1), Scale(0, 10), Scale(-10, 10), Scale(0.5, 5, 0.5)])
def test_scores_rise_with_relevance_and_rating_on_every_scale(scale: Scale) -> None:
    rating = np.linspace(scale.low, scale.high, 7)
    scores = blended(np.full(7, 0.3), rating, 0.5, scale)
    assert (np.diff(scores) > 0).all()
    assert scores[0] > 0
    assert scores[-1] == pytest.approx(highest_scores(np.array([0.3]), 0.5, scale)[0])
    assert (blended(np.full(7, -0.1), rating, 0.5, scale) == 0).all()
