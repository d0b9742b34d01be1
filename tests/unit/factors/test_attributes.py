"""Attributes of items and users: how they become columns, and what a fit learns from them."""

from typing import Literal

import numpy as np
import pytest

from factors import (
    BASIS,
    Attribute,
    Choices,
    Columns,
    FitRefused,
    FitSettings,
    Fitted,
    Float32s,
    Float64s,
    Histories,
    Int32s,
    Int64s,
    Labels,
    ModelUnreadable,
    Numbers,
    Ratings,
    Scorer,
    TypeWeight,
    UInt8s,
    fit,
    fit_ranking,
    from_bytes,
    learn_encoding,
    mark_described,
    relevance_basis,
    to_bytes,
)
from factors.model.attributes import MOST_COLUMNS, encoding_from_bytes, encoding_to_bytes
from factors.model.layout import COUNT
from factors.ranking.side_attributes import (
    SideAttributes,
    side_attributes_from_bytes,
    side_attributes_to_bytes,
)
from factors.training.effects.attribute_effects import AttributeEffects
from tests.unit.factors.factors_world import STARS, histories_of, history

N_USERS, N_ITEMS = 60, 80


def labels(name: str, rows: list[list[str]]) -> Labels:
    known = sorted({label for each in rows for label in each})
    pairs = [(row, known.index(label)) for row, each in enumerate(rows) for label in each]
    row, code = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    return Labels(name, row, code, known)


def numbers(name: str, values: list[float]) -> Numbers:
    return Numbers(name, np.arange(len(values)), np.array(values))


def both(*attributes: Attribute) -> list[Attribute]:
    return list(attributes)


def dense(columns: Columns) -> np.ndarray:
    return columns.times(np.eye(columns.width))


def test_numbers_are_standardised_and_unknown_ones_count_as_the_mean() -> None:
    values = [1.0, 3.0, 1.0, 3.0, 1.0, 3.0, float("nan"), float("inf"), 1e300 * 0 + 2.0]
    given = both(numbers("length", values), labels("kind", [["a"]] * len(values)))
    encoding = learn_encoding(given, len(values))
    table = dense(encoding.encode(given, len(values)))
    assert encoding.numbers[0].mean == pytest.approx(2.0)
    np.testing.assert_allclose(table[6, 0], table[8, 0], atol=1e-9)
    assert table[0, 0] == pytest.approx(-table[1, 0])


def test_what_is_far_off_moves_its_row_no_further_than_the_rest() -> None:
    given = [numbers("price", [1.0, 2.0] * 20)]
    encoding = learn_encoding(given, 40)
    hostile = encoding.encode([numbers("price", [1e308, -1e308, 1.5])], 3)
    assert np.abs(hostile.matrix.toarray()).max() == 4.0
    huge = learn_encoding([numbers("price", [1e308, -1e308] * 10)], 20)
    assert np.isfinite(dense(huge.encode([numbers("price", [1e308, -1e308] * 10)], 20))).all()


def test_rare_and_later_labels_share_a_column() -> None:
    rows = [["drama"]] * 8 + [["war"]] * 6 + [[f"rare-{k}"] for k in range(6)]
    given = [labels("genre", rows)]
    encoding = learn_encoding(given, 20)
    assert encoding.labels[0].labels == ("drama", "war")
    found = encoding.encode([labels("genre", [["never seen"], ["drama", "drama", "war"], []])], 3)
    np.testing.assert_array_equal(found.matrix.toarray(), [[0, 0, 1], [1, 1, 0], [0, 0, 0]])
    assert not dense(found)[2].any()


def test_a_million_distinct_values_are_one_column() -> None:
    n = 1_000_000
    given = [Labels("serial", np.arange(n), np.arange(n), [f"s{k}" for k in range(n)])]
    assert learn_encoding(given, n).width == 1


def test_columns_are_bounded_however_many_labels_are_frequent() -> None:
    n = 20_000
    codes = np.arange(n) % 2_000
    given = [Labels("tag", np.arange(n), codes, [f"t{k}" for k in range(2_000)])]
    assert learn_encoding(given, n).width <= MOST_COLUMNS


def test_an_attribute_of_two_kinds_is_two() -> None:
    given = both(numbers("year", [1.0, 2.0] * 5), labels("year", [["new"], ["old"]] * 5))
    assert learn_encoding(given, 10).width == 3


def test_columns_are_centred_over_the_rows_that_have_any() -> None:
    given = [labels("genre", [["a"]] * 6 + [["b"]] * 10 + [[]] * 4)]
    columns = learn_encoding(given, 20).encode(given, 20)
    np.testing.assert_allclose(dense(columns).sum(axis=0), 0.0, atol=1e-12)
    plain, values = dense(columns), np.arange(40.0).reshape(20, 2)
    np.testing.assert_allclose(columns.gram(), plain.T @ plain)
    np.testing.assert_allclose(columns.transposed_times(values), plain.T @ values)
    np.testing.assert_allclose(dense(columns.resized(25))[:20], plain)


def test_an_encoding_is_read_as_it_was_written_and_nothing_else_is() -> None:
    given = both(numbers("year", [1.0, 2.0] * 5), labels("genre", [["a"]] * 10))
    attributes = SideAttributes(learn_encoding(given, 10), np.ones((3, 4)))
    data = side_attributes_to_bytes(attributes)
    read = side_attributes_from_bytes(memoryview(data))
    assert read.encoding == attributes.encoding
    np.testing.assert_array_equal(read.relevance, attributes.relevance)
    encoding = encoding_to_bytes(attributes.encoding)
    for bad in (b"", data[:-1], data.replace(b"-1", b"-9"), encoding):
        with pytest.raises(ModelUnreadable):
            side_attributes_from_bytes(bad)
    for bad in (b"", encoding[:-3], data):
        with pytest.raises(ModelUnreadable):
            encoding_from_bytes(bad)


def test_the_ridge_leaves_nothing_of_columns_that_say_nothing() -> None:
    rng = np.random.default_rng(0)
    given = [numbers(f"noise-{k}", rng.normal(size=200).tolist()) for k in range(20)]
    columns = learn_encoding(given, 200).encode(given, 200)
    regression = AttributeEffects(columns, np.ones(200, dtype=bool))
    noise = rng.normal(size=(200, 3))
    assert not regression.helps(noise, np.eye(3))
    assert np.abs(columns.times(regression.learn(noise, np.eye(3)))).mean() < 0.2
    true = rng.normal(size=(20, 3))
    said = dense(columns) @ true
    assert regression.helps(said + noise, np.eye(3))
    found = columns.times(regression.learn(said + noise, np.eye(3)))
    assert np.corrcoef(found.ravel(), said.ravel())[0, 1] > 0.97


def world(seed: int = 3) -> tuple[Ratings, Columns]:
    """Ratings of users who like one of four genres; the last 20 items have no ratings."""
    rng = np.random.default_rng(seed)
    genre = np.arange(N_ITEMS) % 4
    taste = rng.normal(0, 1.0, (N_USERS, 4))
    quality = np.array([0.8, 0.2, -0.2, -0.8])
    pair = rng.permutation(N_USERS * 60)[:1500]
    user, item = pair // 60, pair % 60
    score = 3.0 + taste[user, genre[item]] + quality[genre[item]] + rng.normal(0, 0.3, len(pair))
    value = np.clip(np.rint(score), 1, 5)
    given = [labels("genre", [[f"g{k}"] for k in genre])]
    columns = learn_encoding(given, N_ITEMS).encode(given, N_ITEMS)
    time = np.full(len(pair), np.nan)
    return Ratings(user.astype(np.int32), item.astype(np.int32), value, time), columns


def fitted(ratings: Ratings, attributes: Columns | None, start: Fitted | None = None) -> Fitted:
    given: dict[Literal["user", "item"], Columns] = {} if attributes is None else {"item": attributes}
    settings = FitSettings(STARS, rank=4, link="gaussian", sweeps=12)
    rng = np.random.default_rng(1)
    return fit(ratings, N_USERS, N_ITEMS, settings=settings, rng=rng, attributes=given, start=start)


def test_an_item_without_ratings_is_rated_by_its_attributes() -> None:
    ratings, columns = world()
    known = ratings.item_row < 50
    train, test = ratings.take(known), ratings.take(~known)
    errors = []
    for attributes in (None, columns):
        found = fitted(train, attributes)
        scores = Scorer(found.posterior, found.items).score(found.users, test.user_row, test.item_row)
        errors.append(float(np.sqrt(np.mean((scores.rating - test.value) ** 2))))
        assert set(scores.basis.tolist()) == ({2} if attributes is None else {6})
    assert errors[1] < 0.8 * errors[0]


def test_folding_in_gives_the_rows_of_the_fit() -> None:
    ratings, columns = world()
    found = fitted(ratings, columns)
    histories = histories_of(ratings, N_ITEMS, by="item")
    folded = found.posterior.fold_in_items(found.users, histories, current=found.items, attributes=columns)
    unrated = found.items[:, COUNT] == 0
    np.testing.assert_allclose(folded[unrated], found.items[unrated])
    decode = found.posterior.item_codec.decode
    # The fit's items are of the sweep before its last users.
    np.testing.assert_allclose(decode(folded)[:, 2:7], decode(found.items)[:, 2:7], atol=0.05)


def test_a_new_item_with_a_rating_keeps_what_its_attributes_say() -> None:
    ratings, columns = world()
    found = fitted(ratings, columns)
    one = history([0], [3.0])
    plain = found.posterior.fold_in_items(found.users, one)
    described = found.posterior.fold_in_items(found.users, one, attributes=columns.take(np.array([61])))
    assert not np.allclose(plain, described)
    assert described[0, COUNT] == 1


def test_a_fit_goes_on_with_attributes_and_chooses_again_where_they_are_new() -> None:
    ratings, columns = world()
    without, first = fitted(ratings, None), fitted(ratings, columns)
    again = fitted(ratings, columns, start=first)
    assert "held_out_log_likelihood" not in again.metrics
    assert again.posterior.parameters.items.cold_start is not None
    assert again.posterior.parameters.items.cold_start.attribute_effects is not None
    assert "held_out_log_likelihood" in fitted(ratings, columns, start=without).metrics


def test_a_model_keeps_its_effects_as_bytes_and_has_none_without_attributes() -> None:
    ratings, columns = world()
    model = fitted(ratings, columns).model
    assert to_bytes(from_bytes(to_bytes(model))) == to_bytes(model)
    assert not [name for name in fitted(ratings, None).model.parameters if "attributes" in name]


def test_other_columns_than_those_of_the_model_are_refused() -> None:
    ratings, columns = world()
    found = fitted(ratings, columns)
    given = [labels("genre", [["g0"]] * 6)]
    with pytest.raises(ModelUnreadable, match="1 columns"):
        found.posterior.fold_in_items(
            found.users, history([0], [3.0]), attributes=learn_encoding(given, 6).encode([], 1)
        )
    with pytest.raises(FitRefused, match="attributes of 6 items"):
        fitted(ratings, learn_encoding(given, 6).encode(given, 6))


def test_items_without_events_are_relevant_by_their_attributes() -> None:
    rng = np.random.default_rng(5)
    # Each user chooses items of one genre.
    pair = [(user, item) for user in range(N_USERS) for item in range(60) if item % 4 == user % 4]
    kept = [pair[k] for k in rng.permutation(len(pair))[:500]]
    user, item = (np.array(column, dtype=np.int32) for column in zip(*kept, strict=True))
    ratings = Ratings(user, item, np.ones(len(user)), np.full(len(user), np.nan))
    _, columns = world()
    plain = fit_ranking(ratings, N_USERS, N_ITEMS, rng=np.random.default_rng(1))
    found = fit_ranking(ratings, N_USERS, N_ITEMS, rng=np.random.default_rng(1), attributes=columns)
    assert not plain.head.items[60:].any()
    np.testing.assert_array_equal(found.head.items[:60], plain.head.items[:60])
    one = history([0, 4, 8], [1.0] * 3)
    scores = found.head.scores(one)[60:]
    assert set(np.argsort(-scores)[:5] % 4) == {0}
    assert found.relevance is not None
    np.testing.assert_array_equal(found.described, np.arange(60, N_ITEMS))
    assert not len(plain.described)


def test_an_item_that_was_shown_alone_is_relevant_by_its_attributes() -> None:
    shown, rng = 7, np.random.default_rng(5)
    pair = [(user, item) for user in range(N_USERS) for item in range(60) if item % 4 == user % 4]
    kept = [(*pair[k], 0) for k in rng.permutation(len(pair))[:500]]
    kept += [(user, 60 + user % 20, shown) for user in range(N_USERS)]
    user, item, code = (np.array(column) for column in zip(*sorted(kept), strict=True))
    value, time = np.ones(len(user)), np.full(len(user), np.nan)
    given = Choices(user.astype(np.int32), item.astype(np.int32), value, time, code.astype(np.uint8))
    _, columns = world()
    found = fit_ranking(
        *(given.ratings(), N_USERS, N_ITEMS),
        rng=np.random.default_rng(1),
        choices=given,
        types=[TypeWeight(shown, "shown")],
        attributes=columns,
    )
    np.testing.assert_array_equal(found.described, np.arange(60, N_ITEMS))
    assert found.head.items[60:].any(axis=1).all()
    # As folding in has it.
    folded = found.head.fold_in_items(found.users, Histories(*_shown_to(found.users, shown)))
    assert not folded.any()


def _shown_to(users: Float32s, code: int) -> tuple[Int64s, Int32s, Float64s, Float64s, UInt8s]:
    size = len(users)
    rows, codes = np.arange(size, dtype=np.int32), np.full(size, code, np.uint8)
    return np.array([0, size]), rows, np.ones(size), np.full(size, np.nan), codes


def test_relevance_rests_on_events_or_attributes_whatever_the_rating_does() -> None:
    # Count and mean of: rated, twice relevant by attributes, purchased and rated by attributes, unknown.
    items = np.array([[3, 2.5], [0, 1], [0, 0], [0, 1], [0, 0]], dtype=np.float32)
    factors = np.array([[1.0], [2.0], [3.0], [4.0], [0.0]], dtype=np.float32)
    mark_described(items, np.array([0, 1, 2]))
    np.testing.assert_array_equal(items[:, 1], [2.5, 2, -1, 1, 0])
    # Twice is as once.
    mark_described(items, np.array([1, 2]))
    rows = np.array([0, 1, 2, 3, 4, -1, 5])
    for has_events, user in ((True, "user+"), (False, "")):
        found = relevance_basis(items, factors, rows, has_events=has_events)
        nothing = "user" if has_events else "prior"
        known = [f"{user}{basis}" for basis in ("item", "attributes", "attributes", "item")]
        assert [BASIS[code] for code in found] == [*known, nothing, nothing, nothing]
