"""Figures of ranked lists by hand and beside a slow reference, and the table with its verdicts."""

import math
from dataclasses import replace

import numpy as np
import pytest

from evaluation.offline.ranking.metrics import Wanted, graded_gain, ndcg, ranking_figures, recall
from evaluation.offline.ranking.table import compare, comparison_table
from evaluation.results.lines import Line
from factors import Scale

FIVE = Scale(1, 5, 1)


def wanted_of(*ratings: tuple[int, int, float]) -> Wanted:
    user, item, value = (np.array(column) for column in zip(*ratings, strict=True))
    return Wanted.of(np.unique(user), user, item, value.astype(float))


def test_by_hand() -> None:
    top = np.array([[4, 1, 2, 3], [0, 5, -1, -1]], dtype=np.int32)
    # The first user has rated item 1 with 5 and item 9 with 2 stars, the second item 5 with 3.
    wanted = wanted_of((3, 1, 5), (3, 9, 2), (8, 5, 3))
    popularity = np.array([4, 2, 1, 0, 8, 1, 0, 0, 0, 0])
    found = ranking_figures(top, wanted, FIVE, popularity, n_users=8)
    second = 1 / math.log2(3)
    assert found.recall_20 == pytest.approx((1 / 2 + 1) / 2)
    assert found.ndcg_100 == pytest.approx((second / (1 + second) + second) / 2)
    assert found.liked_ndcg_100 == pytest.approx(second)  # the second user has liked nothing
    assert found.graded_ndcg_10 == pytest.approx((15 * second / (15 + second) + second) / 2)
    assert found.coverage_10 == pytest.approx(6 / 10)
    # Of 8 users as many as 8, 2, 1, none, 4 and 1 have the items of the lists; none counts as one.
    assert found.novelty_10 == pytest.approx((0 + 2 + 3 + 3 + 1 + 3) / 6)


def test_users_without_anything_to_find_are_left_out() -> None:
    top, wanted = np.array([[1], [2]], dtype=np.int32), wanted_of((0, 1, 5), (1, 7, 1))
    gain = graded_gain(wanted.value, FIVE)
    assert ndcg(top, wanted, gain) == 1.0
    assert math.isnan(ndcg(top, wanted, np.zeros(2)))
    nothing = Wanted.of(np.array([0, 1]), np.array([5]), np.array([1]), np.array([3.0]))
    assert math.isnan(recall(top, nothing))


def slow_ndcg(top: list[list[int]], gains: list[dict[int, float]], k: int) -> float:
    """One user and one item at a time."""
    found = []
    for ranked, gain in zip(top, gains, strict=True):
        got = sum(gain.get(item, 0.0) / math.log2(place + 2) for place, item in enumerate(ranked[:k]))
        best = sum(g / math.log2(place + 2) for place, g in enumerate(sorted(gain.values())[::-1][:k]))
        if best > 0:
            found.append(got / best)
    return sum(found) / len(found)


@pytest.mark.parametrize("seed", range(5))
def test_as_a_slow_reference(seed: int) -> None:
    rng = np.random.default_rng(seed)
    pairs = rng.permutation(20 * 30)[:200]
    user, item = (pairs // 30).astype(np.int32), (pairs % 30).astype(np.int32)
    value = rng.integers(1, 6, 200).astype(float)
    users = np.unique(user)[1:]  # one of them has no list
    top = np.stack([rng.permutation(30)[:12] for _ in users]).astype(np.int32)
    top[3, 5:] = -1
    wanted = Wanted.of(users, user, item, value)
    stars = [
        {int(i): v for u, i, v in zip(user, item, value, strict=True) if u == one} for one in users.tolist()
    ]
    gains = [{i: 2 ** (v - 1) - 1 for i, v in one.items()} for one in stars]
    assert ndcg(top, wanted, graded_gain(wanted.value, FIVE), 10) == pytest.approx(
        slow_ndcg(top.tolist(), gains, 10)
    )
    every = [dict.fromkeys(one, 1.0) for one in stars]
    assert ndcg(top, wanted, np.ones(len(wanted.row)), 4) == pytest.approx(slow_ndcg(top.tolist(), every, 4))
    shares = [
        len(set(ranked[:7]) & set(one)) / min(7, len(one))
        for ranked, one in zip(top.tolist(), stars, strict=True)
    ]
    assert recall(top, wanted, 7) == pytest.approx(np.mean(shares))


def lines_of(engine: str, title: str, *ndcgs: float, kind: str = "random") -> list[Line]:
    line = Line("d", kind, engine, title, recall_20=0.4, liked_ndcg_100=0.4, graded_ndcg_10=0.3)
    return [replace(line, split=f"{kind} {j}", ndcg_100=value) for j, value in enumerate(ndcgs, start=1)]


def test_foldin_is_set_against_the_best_tuned_rival_of_each_figure() -> None:
    lines = [
        *lines_of("auto", "Foldin", 0.50, 0.52),
        *lines_of("ials", "iALS, tuned", 0.40, 0.50),
        *lines_of("edlae", "EDLAE, tuned", 0.50, 0.50),
        # On other splits it is no rival, nor is one without settings to tune.
        *lines_of("item-knn", "item-kNN, tuned", 0.9),
        *lines_of("popularity", "popularity", 0.9, 0.9),
        Line("d", "random 1", "implicit-als", "implicit's ALS, tuned", skipped="not installed"),
        *lines_of("auto", "Foldin", 0.30, kind="last"),
        *lines_of("edlae", "EDLAE, tuned", 0.29, kind="last"),
    ]
    found = {(one.split, one.figure): one for one in compare(lines)}
    ndcgs = found["random", "NDCG@100"]
    assert (ndcgs.rival, ndcgs.verdict) == ("EDLAE, tuned", "met")
    assert ndcgs.ratio == pytest.approx(0.51 / 0.50)
    assert found["random", "Recall@20"].verdict == "met"
    assert found["random", "graded NDCG@10"].verdict == "missed"
    assert found["random", "liked NDCG@100"].verdict == ""
    assert found["last", "NDCG@100"].verdict == "missed"
    assert replace(ndcgs, own=0.50).verdict == "floor"
    assert not list(compare(lines_of("auto", "Foldin", 0.5)))
    cells = [list(column.cells) for column in comparison_table(list(found.values())).columns]
    assert "1.020" in cells[5]
