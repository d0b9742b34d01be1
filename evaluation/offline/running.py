"""Every engine on every split, one process each, one after the other.

Invariant: a line is a function of data, split, engine, seed and version alone, which make its key; so a line
that is there already is the line that would be computed.
"""

import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version

import numpy as np

from evaluation.errors import EngineFailedError, NotInstalledError
from evaluation.offline.engines import title
from evaluation.offline.jobs import LIMIT_S, Answer, Question, answer
from evaluation.offline.metrics import NDCG_AT, figures, ndcg, recall
from evaluation.offline.results import Line, LineStore
from evaluation.offline.splits import Split

Ask = Callable[[Question], Answer]


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be run. `ranking`: also Recall@20 and NDCG@100; `others`: engines that are asked otherwise,
    such as a deployment; `python`: the interpreter that has the peers.
    """

    splits: Sequence[Split]
    engines: Sequence[str]
    seed: int
    ranking: bool = False
    python: str = sys.executable
    limit_s: float = LIMIT_S
    others: Mapping[str, Ask] | None = None

    def works(self) -> Iterator[tuple[Split, str]]:
        """Each line to be had."""
        for split in self.splits:
            for engine in self.engines:
                yield split, engine


def key_of(split: Split, engine: str, plan: Plan) -> str:
    """What tells lines apart."""
    parts = [
        split.data.digest(),
        split.name,
        split.digest(),
        engine,
        plan.seed,
        plan.ranking,
        version("foldin"),
    ]
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()


def measure(
    plan: Plan, store: LineStore | None = None, done: Mapping[str, Line] | None = None
) -> Iterator[tuple[Line, bool]]:
    """The lines of the plan, in order, and whether each was there already (in `done`, by its key)."""
    for split, engine in plan.works():
        key = key_of(split, engine, plan) if store is not None or done else ""
        if done and key in done:
            yield done[key], True
            continue
        line = one(split, engine, plan)
        if store is not None and not line.failed:
            store.append(key, line)
        yield line, False


def one(split: Split, engine: str, plan: Plan) -> Line:
    """One line, whatever becomes of it."""
    question = split.question(NDCG_AT if plan.ranking and not split.sequential else 0)
    other = (plan.others or {}).get(engine)
    name = engine if other else title(engine)
    empty = Line(split.data.name, split.name, engine, name)
    try:
        if other is not None:
            given = other(question)
        else:
            given = answer(engine, question, seed=plan.seed, python=plan.python, limit_s=plan.limit_s)
        return judge(split, engine, name, question, given)
    except NotInstalledError as exc:
        return _skipped(empty, str(exc), failed=False)
    except EngineFailedError as exc:
        return _skipped(empty, str(exc), failed=True)


def _skipped(line: Line, why: str, *, failed: bool) -> Line:
    return Line(line.data, line.split, line.engine, line.title, skipped=why, failed=failed)


def judge(split: Split, engine: str, name: str, question: Question, given: Answer) -> Line:
    """The line of an answer. Raises `EngineFailedError` where predictions are missing or not finite, and
    `NotInstalledError` where it answers nothing that was asked.
    """
    predicted, truth = given.predicted, split.truth()
    found: dict[str, object] = {}
    if len(predicted.rating):
        if predicted.rating.shape != truth.shape or not np.isfinite(predicted.rating).all():
            raise EngineFailedError(f"{name}: predictions are missing or not finite")
        of_ratings = figures(
            predicted, truth, split.known_of_user(), split.data.scale, sequential=split.sequential
        )
        found = {
            "rmse": of_ratings.rmse,
            "mae": of_ratings.mae,
            "log_likelihood": of_ratings.log_likelihood,
            "coverage": of_ratings.coverage,
            "deciles": of_ratings.deciles.coverage,
            "decile_known": of_ratings.deciles.known,
            "reliability": of_ratings.reliability,
            "curve": of_ratings.curve,
        }
    if predicted.top.size:
        ranked = (predicted.top, question.ranked_users(), question.test_user, question.test_item)
        found |= {"recall_20": recall(*ranked), "ndcg_100": ndcg(*ranked)}
    if not found:
        raise NotInstalledError("ranks and does not rate: ask for rankings with --ranking")
    return Line(
        data=split.data.name,
        split=split.name,
        engine=engine,
        title=name,
        n_train=0 if split.sequential else int((~split.test).sum()),
        n_test=len(truth),
        seconds=given.seconds,
        peak_mb=given.peak_mb,
        note=predicted.note,
        **found,  # type: ignore[arg-type] # the names are those of the fields
    )
