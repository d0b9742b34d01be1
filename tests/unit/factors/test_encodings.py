"""How attributes of items and users, and contexts of ratings, become columns of numbers."""

import numpy as np
import pytest

from factors import Attribute, Columns, Labels, Numbers, Ratings, fit_ranking, learn_encoding
from factors.model.attributes import MOST_COLUMNS
from tests.unit.factors.factors_world import histories_of, history

N_USERS, N_ITEMS = 60, 80


def labels(name: str, rows: list[list[str]]) -> Labels:
    known = sorted({label for each in rows for label in each})
    pairs = [(row, known.index(label)) for row, each in enumerate(rows) for label in each]
    row, code = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    return Labels(name, row, code, known)


def numbers(name: str, values: list[float]) -> Numbers:
    return Numbers(name, np.arange(len(values)), np.array(values))


def dense(columns: Columns) -> np.ndarray:
    return columns.times(np.eye(columns.width))


def test_numbers_are_standardised() -> None:
    values = [1.0, 3.0, 1.0, 3.0, 1.0, 3.0, float("nan"), float("inf"), 2.0]
    given: list[Attribute] = [numbers("length", values), labels("kind", [["a"]] * len(values))]
    encoding = learn_encoding(given, len(values))
    table = dense(encoding.encode(given, len(values)))
    assert encoding.numbers[0].mean == pytest.approx(2.0)
    # What is unknown counts as the mean.
    np.testing.assert_allclose(table[6, 0], table[8, 0], atol=1e-9)
    assert table[0, 0] == pytest.approx(-table[1, 0])
    # What is far off moves its row no further than the rest.
    encoding = learn_encoding([numbers("price", [1.0, 2.0] * 20)], 40)
    hostile = encoding.encode([numbers("price", [1e308, -1e308, 1.5])], 3)
    assert np.abs(hostile.matrix.toarray()).max() == 4.0


def test_labels_have_columns_where_they_are_frequent() -> None:
    rows = [["drama"]] * 8 + [["war"]] * 6 + [[f"rare-{k}"] for k in range(6)]
    encoding = learn_encoding([labels("genre", rows)], 20)
    assert encoding.labels[0].labels == ("drama", "war")
    found = encoding.encode([labels("genre", [["never seen"], ["drama", "drama", "war"], []])], 3)
    np.testing.assert_array_equal(found.matrix.toarray(), [[0, 0, 1], [1, 1, 0], [0, 0, 0]])
    assert not dense(found)[2].any()
    n = 20_000
    serial = Labels("serial", np.arange(n), np.arange(n), [f"s{k}" for k in range(n)])
    assert learn_encoding([serial], n).width == 1
    tags = Labels("tag", np.arange(n), np.arange(n) % 2_000, [f"t{k}" for k in range(2_000)])
    assert learn_encoding([tags], n).width <= MOST_COLUMNS
    both: list[Attribute] = [numbers("year", [1.0, 2.0] * 5), labels("year", [["new"], ["old"]] * 5)]
    assert learn_encoding(both, 10).width == 3


def test_items_without_events_are_relevant_by_their_attributes() -> None:
    rng = np.random.default_rng(5)
    # Each user chooses items of one genre.
    pair = [(user, item) for user in range(N_USERS) for item in range(60) if item % 4 == user % 4]
    kept = [pair[k] for k in rng.permutation(len(pair))[:500]]
    user, item = (np.array(column, dtype=np.int32) for column in zip(*kept, strict=True))
    given = Ratings(user, item, np.ones(500), np.full(500, np.nan))
    genres: list[Attribute] = [labels("genre", [[f"g{k % 4}"] for k in range(80)])]
    columns = learn_encoding(genres, N_ITEMS).encode(genres, N_ITEMS)
    plain, found = (
        fit_ranking(given, N_USERS, N_ITEMS, rng=np.random.default_rng(1), attributes=each)
        for each in (None, columns)
    )
    assert not plain.head.items[60:].any()
    of_genre = found.head.items[60 + np.arange(60) % 4]
    folded, _ = found.head.fold_in_items(found.users, histories_of(given, 60, by="item"), of_genre)
    np.testing.assert_allclose(found.head.items[:60], folded, rtol=1e-4, atol=1e-5)
    scores = found.head.scores(history([0, 4, 8], [1.0] * 3))[60:]
    assert set(np.argsort(-scores)[:5] % 4) == {0}
    assert found.relevance is not None
    np.testing.assert_array_equal(found.described, np.arange(60, N_ITEMS))
    assert not len(plain.described)
