"""A world that has a term of the model is foretold better with it, also by folding in."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from environment.world import WorldOptions, make_world
from factors import (
    Columns,
    FitRefused,
    FitSettings,
    Fitted,
    Labels,
    ModelUnreadable,
    Ratings,
    Scale,
    Scorer,
    explain,
    fit,
    from_bytes,
    learn_encoding,
    posterior_of,
    to_bytes,
)
from factors.model.layout import COUNT
from factors.model.parameters import SideName, from_model
from factors.model.types import Float32s, Float64s, Link
from factors.training.terms import terms_of
from tests.unit.factors.factors_world import STARS, histories_of, history, ratings

HOUR, NAN = 3600.0, math.nan
LINKS: tuple[Link, ...] = ("gaussian", "ordinal")


def split(given: Ratings, share: float = 0.25) -> tuple[Ratings, Ratings]:
    asked = np.random.default_rng(1).random(len(given.value)) < share
    return given.take(~asked), given.take(asked)


def learned(given: Ratings, n_users: int, n_items: int, scale: Scale = STARS, **settings: Any) -> Fitted:
    start, rng = settings.pop("start", None), np.random.default_rng(0)
    chosen = FitSettings(scale, **{"rank": 2, **settings})
    return fit(given, n_users, n_items, settings=chosen, rng=rng, start=start)


def error(found: Fitted, of: Ratings, time: Float64s | None = None, context: Float32s | None = None) -> float:
    scorer = Scorer(found.posterior, found.items)
    scores = scorer.score(found.users, of.user_row, of.item_row, time, context)
    return float(np.mean((scores.rating - of.value) ** 2))


def test_implicit_effects() -> None:
    rng, group, kind = np.random.default_rng(6), np.arange(120) % 2, np.arange(60) % 3
    chance = np.where(kind == 2, 0.2, np.where(kind == group[:, None], 0.6, 0.02))
    user, item = np.nonzero(rng.random((120, 60)) < chance)
    liked = np.where(kind == 2, np.where(np.arange(60) % 2, 1.2, -1.2), 0.0)
    score = 3 + liked[item] * (2 * group[user] - 1) + rng.normal(0, 0.8, len(user))
    known, asked = split(ratings(user, item, np.clip(np.rint(score), 1, 5)))
    asked = asked.take(kind[asked.item_row] == 2)
    found, without = (
        learned(known, 120, 60, link="gaussian", sweeps=25, implicit_effects=each) for each in (True, False)
    )
    assert error(found, asked) < 0.85 * error(without, asked)
    again = learned(known, 120, 60, start=found, link="gaussian", implicit_effects=False)
    assert again.posterior.parameters.users.implicit_ridge == 0
    ones = [found.posterior.fold_in_users(found.items, history([k, k + 3, k + 6], [3.0] * 3)) for k in (0, 1)]
    items, scorer = np.flatnonzero(kind == 2), Scorer(found.posterior, found.items)
    zeros, other = (scorer.rating(row, np.zeros(20, np.int64), items) for row in ones)
    assert np.corrcoef(other - zeros, liked[items])[0, 1] > 0.8


def moody(session_variance: float, sitting_variance: float) -> Ratings:
    """Ratings of sessions of two and sittings of five of them."""
    rng = np.random.default_rng(3)
    users, items, each = 150, 60, 40
    user = np.repeat(np.arange(users, dtype=np.int32), each)
    item = np.concatenate([rng.permutation(items)[:each] for _ in range(users)]).astype(np.int32)
    session = np.arange(users * each) // 2
    effect = rng.normal(0.0, np.sqrt(session_variance), session.max() + 1)
    effect += rng.normal(0.0, np.sqrt(sitting_variance), session.max() // 5 + 1)[np.arange(len(effect)) // 5]
    value = rng.normal(0.0, 0.5, items)[item] + effect[session] + rng.normal(0.0, 0.5, len(user))
    return Ratings(user, item, np.clip(value, -9.0, 9.0), HOUR * (session % 5 + 8.0 * (session // 5)))


@pytest.mark.parametrize(("of", "least", "most"), [(0, 1, 1), (2, 2, 4)])
def test_rank(of: int, least: int, most: int) -> None:
    rng = np.random.default_rng(5)
    left, right = rng.normal(size=(60, of)), rng.normal(size=(80, of)) / np.sqrt(of or 1)
    user, item = np.divmod(rng.permutation(60 * 80)[:2_400], 80)
    score = 3.0 + (left[user] * right[item]).sum(axis=1) + 0.5 * rng.normal(size=60)[user]
    value = np.clip(np.rint(2.0 * (score + rng.normal(0.0, 0.6, 2_400))) / 2.0, 1.0, 5.0)
    known, asked = split(ratings(user, item, value), 0.4)
    scale, how = Scale(1.0, 5.0, 0.5), {"link": "gaussian", "session_effects": False}
    found = learned(known, 60, 80, scale, **how, rank="auto")
    assert least <= found.model.rank <= most
    for rank in (1, 3):
        other = learned(known, 60, 80, scale, **how, rank=rank, sweeps=15)
        assert other.model.rank == rank
        assert error(found, asked) < (0.9 if rank < of else 1.1) * error(other, asked)


@pytest.mark.parametrize("sitting_variance", [0.0, 0.5])
def test_sessions_and_sittings(sitting_variance: float) -> None:
    known, asked = split(moody(0.3, sitting_variance))
    found = learned(known, 150, 60, Scale(-9, 9), rank=1)
    users = found.posterior.parameters.users
    assert (users.sitting_variance > 0) == (sitting_variance > 0)
    assert users.session_variance == pytest.approx(0.3, rel=0.4)
    again = learned(known, 150, 60, Scale(-9, 9), start=found, rank=1, session_effects=False)
    assert not again.posterior.parameters.users.has_sessions
    assert error(found, asked, asked.time) < (0.85 if sitting_variance == 0 else 0.6) * error(again, asked)
    # Who asks without a time is not worse off for the sessions, after a refit neither.
    refitted = learned(known, 150, 60, Scale(-9, 9), start=found, rank=1)
    assert refitted.posterior.parameters.users.any_time == users.any_time > 0.5
    for each in (found, refitted):
        assert error(each, asked) < 1.003 * error(again, asked)


SHAPE = (40, 60)


def drifting(drift: float, n: int = 2000, seed: int = 3) -> Ratings:
    """Ratings in the order of time, of users whose tastes turn by `drift` radians in all."""
    world = make_world(seed, WorldOptions(*SHAPE, n_known=n, drift=drift * 10_000 / n))
    time = np.arange(n, dtype=np.float64)
    return Ratings(world.user[:n], world.item[:n], world.rating[:n].astype(np.float64), time)


@pytest.fixture(scope="module", params=LINKS)
def moving(request: pytest.FixtureRequest) -> Fitted:
    return learned(drifting(1.5).take(np.arange(1_700)), *SHAPE, link=request.param)


def test_moving_users(moving: Fitted) -> None:
    assert moving.posterior.parameters.moves
    known, later = drifting(1.5).take(np.arange(1_700)), drifting(1.5).take(np.arange(1_700, 2_000))
    still = learned(known, *SHAPE, link=moving.model.link, session_effects=False)
    assert error(moving, later, later.time) < 0.85 * error(still, later)
    # What a user was is asked for by time.
    early = known.take(np.arange(300))
    assert error(moving, early, early.time) < 0.8 * error(moving, early)
    assert error(moving, early, np.full(300, 1e12)) == error(moving, early)
    # The fit has the rows of folding in, of all together and of one alone, in any order.
    past = histories_of(known, SHAPE[0])
    folded = moving.posterior.fold_in_users(moving.items, past, current=moving.users)
    np.testing.assert_allclose(folded, moving.users, rtol=1e-4, atol=1e-5)
    mine = np.flatnonzero(known.user_row == 11)[::-1]
    columns = (known.item_row[mine], known.value[mine], known.time[mine])
    own = history(*(column.tolist() for column in columns))
    alone = moving.posterior.fold_in_users(moving.items, own, current=moving.users[11:12])
    np.testing.assert_allclose(alone[0], folded[11], rtol=2e-3, atol=2e-4)
    found = explain(moving.posterior, moving.items, own, 9, current=moving.users[11:12])
    rating = Scorer(moving.posterior, moving.items).rating(alone, np.zeros(1, np.int64), np.array([9]))
    assert found.base + found.contributions.sum() == pytest.approx(float(rating[0]), abs=1e-4)
    again = from_model(from_bytes(to_bytes(moving.model))).users.drift
    expected = moving.posterior.parameters.users.drift
    assert again is not None
    assert expected is not None
    np.testing.assert_array_equal(again.covariance, expected.covariance)


USERS, ITEMS, FIELDS = 60, 80, 3


def in_contexts(seed: int = 5, n: int = 1_500, n_known: int = 1_200) -> tuple[Ratings, Ratings]:
    made = make_world(seed, WorldOptions(USERS, ITEMS, n_known, n_variables=FIELDS))
    context = made.variables[:n].astype(np.float32)
    value, nothing = made.rating[:n].astype(float), np.full(n, NAN)
    found = Ratings(made.user[:n], made.item[:n], value, nothing, context)
    return found.take(np.arange(n_known)), found.take(np.arange(n_known, n))


@pytest.fixture(scope="module")
def shifted() -> Fitted:
    settings, rng = FitSettings(STARS, link="gaussian", rank=2, sweeps=15), np.random.default_rng(3)
    how = {"context_kinds": ("number",) * FIELDS, "settings": settings, "rng": rng}
    return fit(in_contexts()[0], USERS, ITEMS, **how)  # type: ignore[arg-type]


def test_contexts(shifted: Fitted) -> None:
    known, later = in_contexts()
    assert shifted.posterior.reads_context
    # Variables make about a fifth of the variance of the scores, and nearly all of that can be known.
    assert error(shifted, later, context=later.context) < 0.7 * error(shifted, later)
    again = posterior_of(from_bytes(to_bytes(shifted.model)))
    assert terms_of(again.parameters) == terms_of(shifted.posterior.parameters)
    order = np.argsort(known.user_row, kind="stable")
    assert known.context is not None
    histories = replace(histories_of(known, USERS), context=known.context[order])
    rows = again.fold_in_users(shifted.items, histories, current=shifted.users)
    np.testing.assert_allclose(rows, shifted.users, rtol=2e-4, atol=2e-5)
    blind = again.fold_in_users(shifted.items, replace(histories, context=None), current=shifted.users)
    assert np.abs(blind - shifted.users).max() > 0.05
    assert later.context is not None
    one, context = histories.part(4, 5), later.context[:1]
    found = explain(again, shifted.items, one, 9, current=shifted.users[4:5], context=context)
    scorer, item = Scorer(again, shifted.items), np.array([9])
    score = scorer.score(shifted.users[4:5], None, item, context=context)
    assert found.base + found.contributions.sum() == pytest.approx(score.rating[0], abs=1e-4)
    # Users who are shifted beforehand, as the service has them, are the same.
    moved = again.shift_users(shifted.users[4:5], context)
    assert scorer.score(moved, None, item).rating[0] == pytest.approx(score.rating[0], rel=1e-6)


def of_genres() -> tuple[Ratings, Columns]:
    rng = np.random.default_rng(3)
    genre, taste = np.arange(ITEMS) % 4, rng.normal(0, 1.0, (USERS, 4))
    user, item = np.divmod(rng.permutation(USERS * 60)[:1500], 60)
    quality = np.array([0.8, 0.2, -0.2, -0.8])
    score = 3.0 + taste[user, genre[item]] + quality[genre[item]] + rng.normal(0, 0.3, len(user))
    given = [Labels("genre", np.arange(ITEMS), genre, [f"g{k}" for k in range(4)])]
    columns = learn_encoding(given, ITEMS).encode(given, ITEMS)
    return ratings(user, item, np.clip(np.rint(score), 1, 5)), columns


def described(given: Ratings, columns: Columns | None, start: Fitted | None = None) -> Fitted:
    attributes: dict[SideName, Columns] = {} if columns is None else {"item": columns}
    settings, rng = FitSettings(STARS, rank=4, link="gaussian", sweeps=12), np.random.default_rng(1)
    return fit(given, USERS, ITEMS, settings=settings, rng=rng, attributes=attributes, start=start)


def test_attributes() -> None:
    given, columns = of_genres()
    known, asked = given.take(given.item_row < 50), given.take(given.item_row >= 50)
    plain, found = described(known, None), described(known, columns)
    assert error(found, asked) < 0.65 * error(plain, asked)
    for each, basis in ((plain, 2), (found, 6)):
        scores = Scorer(each.posterior, each.items).score(each.users, asked.user_row, asked.item_row)
        assert set(scores.basis.tolist()) == {basis}
    histories = histories_of(known, ITEMS, by="item")
    folded = found.posterior.fold_in_items(found.users, histories, current=found.items, attributes=columns)
    unrated, decode = found.items[:, COUNT] == 0, found.posterior.item_codec.decode
    np.testing.assert_allclose(folded[unrated], found.items[unrated])
    # The fit's items are of the sweep before its last users.
    np.testing.assert_allclose(decode(folded)[:, 2:7], decode(found.items)[:, 2:7], atol=0.05)
    # A fit goes on with them, and chooses again where they are new.
    assert "held_out_log_likelihood" not in described(known, columns, found).metrics
    assert "held_out_log_likelihood" in described(known, columns, plain).metrics
    assert to_bytes(from_bytes(to_bytes(found.model))) == to_bytes(found.model)
    other = [Labels("genre", np.arange(6), np.zeros(6, np.int64), ["g0"])]
    encoding = learn_encoding(other, 6)
    with pytest.raises(ModelUnreadable, match="1 columns"):
        found.posterior.fold_in_items(found.users, history([0], [3.0]), attributes=encoding.encode([], 1))
    with pytest.raises(FitRefused, match="attributes of 6 items"):
        described(known, encoding.encode(other, 6))


def popular_world(seed: int) -> tuple[Ratings, np.ndarray]:
    """Good items are rated by many, bad ones by few; whether each of 120 items is new (left out of a fit)."""
    rng = np.random.default_rng(seed)
    quality = rng.normal(0, 0.8, 120)
    chance = 1.0 / (1.0 + np.exp(-2.0 * quality + 1.0))
    user, item = np.nonzero(rng.random((200, 120)) < 0.35 * chance)
    score = 3.2 + quality[item] + rng.normal(0, 0.4, 200)[user] + rng.normal(0, 0.7, len(user))
    order = rng.permutation(len(user))
    return ratings(user[order], item[order], np.clip(np.rint(score), 1, 5)[order]), rng.random(120) < 0.2


def test_cold_start() -> None:
    """A new item is rated as well as by the shrunk mean of its ratings, from the first one on."""
    given, new = popular_world(2)
    known = ~new[given.item_row]
    found = learned(given.take(known), 200, 120)
    mean, counts = float(given.value.mean()), np.bincount(given.user_row[known], minlength=200)
    bias = np.bincount(given.user_row[known], given.value[known] - mean, 200) / (counts + 5.0)
    for shown in (0, 1, 3, 8):
        errors: list[Float64s] = []
        simple: list[Float64s] = []
        for row in np.flatnonzero(new):
            mine = np.flatnonzero(given.item_row == row)
            seen, rest = mine[:shown], mine[8:]
            past = history(given.user_row[seen].tolist(), given.value[seen].tolist())
            prior = found.posterior.prior_item[None]
            item = found.posterior.fold_in_items(found.users, past, current=prior)
            users = given.user_row[rest]
            scores = Scorer(found.posterior, item).score(found.users, users, np.zeros(len(rest), np.int64))
            errors.append(scores.rating - given.value[rest])
            surprise = given.value[seen] - mean - bias[given.user_row[seen]]
            simple.append(mean + bias[users] + surprise.sum() / (shown + 3.0) - given.value[rest])
        assert np.mean(np.concatenate(errors) ** 2) < 1.05 * np.mean(np.concatenate(simple) ** 2)


@pytest.mark.parametrize("scale", [STARS, Scale(-10, 10), Scale(-10, 10, 0.01)], ids=repr)
def test_ordinal_link(scale: Scale) -> None:
    rng = np.random.default_rng(7)
    user, item = np.divmod(rng.permutation(60 * 50)[:1_800], 50)
    left, right = rng.normal(size=(60, 2)), rng.normal(size=(50, 2))
    score = (left[user] * right[item]).sum(axis=1) + 0.5 * rng.normal(size=50)[item]
    level = np.searchsorted([-0.2, 0.0, 0.2, 0.4], score := score + rng.normal(0, 0.3, len(score)))
    known, asked = split(ratings(user, item, level + 1.0 if scale == STARS else 10 * np.tanh(4 * score)))
    gaussian, found = (learned(known, 60, 50, scale, link=link, sweeps=15) for link in ("gaussian", "auto"))
    assert from_bytes(to_bytes(found.model)).link == "ordinal"
    assert error(found, asked) < 0.85 * error(gaussian, asked)


@pytest.mark.parametrize(
    "scale", [Scale(1, 5, 1), Scale(-10, 10), Scale(0.5, 5, 0.5), Scale(0, 100, 1)], ids=repr
)
def test_nine_in_ten_unseen_ratings_are_inside(scale: Scale) -> None:
    """Whatever the scale, for rows of few ratings too: users, some of them moody, rate few of many items."""
    rng = np.random.default_rng(3)
    n_users, n_items, n = 250, 200, 9_000
    popular, busy = rng.gamma(0.7, size=n_items) + 0.05, rng.gamma(0.7, size=n_users) + 0.05
    user = rng.choice(n_users, 2 * n, p=busy / busy.sum())
    item = rng.choice(n_items, 2 * n, p=popular / popular.sum())
    user, item = np.divmod(rng.permutation(np.unique(user * n_items + item))[:n], n_items)
    left, right = rng.normal(0, 0.7, (n_users, 2)), rng.normal(0, 0.7, (n_items, 2))
    score = (left[user] * right[item]).sum(axis=1) + rng.normal(0, 0.4, n_items)[item]
    score += rng.gamma(4.0, 0.2, n_users)[user] * rng.normal(0, 1, len(user))
    value = 0.5 * (scale.high + scale.low) + (scale.high - scale.low) / 6.0 * score
    if scale.step is not None:
        value = scale.low + np.rint((value - scale.low) / scale.step) * scale.step
    given = ratings(user, item, np.clip(value, scale.low, scale.high))
    asked = rng.random(len(user)) < 0.33
    train, test = given.take(~asked), given.take(asked)
    found = learned(train, n_users, n_items, scale, sweeps=15)
    scores = Scorer(found.posterior, found.items).score(found.users, test.user_row, test.item_row)
    inside = np.abs(test.value - scores.rating) <= 1.6449 * scores.std
    # Learned from 600 ratings, the share has a standard error of 0.012.
    assert 0.86 < inside.mean() < 0.94
    order = np.argsort(np.bincount(train.user_row, minlength=n_users)[test.user_row], kind="stable")
    for some in np.array_split(inside[order], 3):
        assert 0.83 < some.mean() < 0.96
    known, again = from_model(found.model), from_model(from_bytes(to_bytes(found.model)))
    assert known.variance_scale == again.variance_scale
    np.testing.assert_array_equal(known.std_calibration, again.std_calibration)
