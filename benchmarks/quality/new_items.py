"""How items without any rating are rated and ranked, with their attributes and without.

Invariant: a tenth of the items is chosen by chance and held out with all of its ratings; both engines see the
same other ratings, and rank these items alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from evaluation.offline.data import DataSet
from evaluation.offline.engines import ATTRIBUTES, AUTO, attributes_of, fit_options
from evaluation.offline.jobs import run_apart
from evaluation.offline.ranking.head_lists import histories_of
from evaluation.offline.ranking.lists import rows_of
from evaluation.offline.ranking.metrics import Wanted, ndcg
from evaluation.offline.splits import TENTH, Split
from evaluation.question import Question, Rows
from factors import BlendedRanker, FitSettings, Scorer, fit, fit_ranking

SHOWN = 10  # items of a list that people see at once
GLOBAL_MEAN, RANDOM = "global-mean", "random"


@dataclass(frozen=True, slots=True)
class NewItems:
    """Errors of one engine on `n_test` ratings of `n_items` new items of a data set: `rmse`, and `ndcg_10` of
    lists of these items for the users who rated any; NaN where it does not rate, or rank.
    """

    data: str
    engine: str
    n_items: int
    n_test: int
    rmse: float
    ndcg_10: float


def measure_new_items(data: DataSet, seed: int) -> list[NewItems]:
    """Return what the mean of all ratings, chance, and Foldin without and with attributes make of them."""
    ratings, rng = data.ratings, np.random.default_rng(seed)
    rated = np.flatnonzero(np.bincount(ratings.item_row, minlength=data.n_items))
    new = rng.permutation(rated)[: max(1, round(TENTH * len(rated)))]
    split = Split(data, "new items", np.isin(ratings.item_row, new))
    question, truth = split.question(SHOWN), split.truth()
    users = question.ranked_users()
    wanted = Wanted.of(users, question.test_user, question.test_item, truth)

    def line(engine: str, rating: npt.NDArray[Any] | None, top: Rows | None) -> NewItems:
        rmse = float("nan") if rating is None else float(np.sqrt(np.mean((rating - truth) ** 2)))
        found = float("nan") if top is None else ndcg(top, wanted, np.ones(len(wanted.row)), SHOWN)
        return NewItems(data.name, engine, len(new), len(truth), rmse, found)

    mean = np.full(len(truth), question.train_value.mean())
    drawn = np.stack([rng.permutation(new)[:SHOWN] for _ in users]).astype(np.int32)
    lines = [line(GLOBAL_MEAN, mean, None), line(RANDOM, None, drawn)]
    for engine in (AUTO, ATTRIBUTES):
        arrays, _ = run_apart("benchmarks.quality.new_items:run", question, {"engine": engine}, seed=seed)
        lines.append(line(engine, arrays["rating"], arrays["top"]))
    return lines


def run(question: Question, options: Mapping[str, str], seed: int) -> tuple[dict[str, Any], str]:
    """Answer for `run_apart`: `rating` (m,) of the held-out pairs, `top` (u, n) of the new items alone."""
    engine, rng = options["engine"], np.random.default_rng(seed)
    shape, attributes = (question.n_users, question.n_items), attributes_of(engine, question)
    settings = FitSettings(question.scale(), **fit_options(engine))
    fitted = fit(question.ratings(), *shape, settings=settings, rng=rng, attributes=attributes)
    scorer = Scorer(fitted.posterior, fitted.items)
    scores = scorer.score(fitted.users, question.test_user, question.test_item, question.test_time)
    described = attributes.get("item")
    head = fit_ranking(question.ratings(), *shape, rng=rng, attributes=described).head
    ranker, users = BlendedRanker(head, fitted.posterior), question.ranked_users()
    allowed = np.zeros(question.n_items, dtype=np.bool_)
    allowed[question.test_item] = True
    nothing = [np.zeros(0, dtype=np.int64)] * len(users)
    asked = (fitted.users[users], histories_of(question, users), question.top, nothing)
    found = [each.item_rows for each in ranker.top(scorer, *asked, allowed=allowed)]
    return {"rating": scores.rating, "top": rows_of(found, question.top)}, ""
