"""Every engine on every split, one process each, one after the other.

Invariant: a line is a function of data, split, engine, seed and version alone, which make its key; so a line
that is there already is the line that would be computed.
"""

import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version

import numpy as np

from evaluation.errors import EngineFailedError, NotInstalledError
from evaluation.metrics import figures
from evaluation.offline.engines import NO_MORE, find
from evaluation.offline.jobs import ENGINES, LIMIT_S, run_apart
from evaluation.offline.ranking.metrics import NDCG_AT, Wanted, ranking_figures
from evaluation.offline.splits import Split
from evaluation.question import Answer, ComparedEngine, Predicted, Question
from evaluation.results.lines import Line, LineStore

Ask = Callable[[Question], Answer]


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be run. `ranking`: also figures of ranked lists; `others`: engines that are not run here,
    such as a deployment; `more`: engines of others, for which `target` answers as in `jobs.run_apart`, with
    the interpreter `python`.
    """

    splits: Sequence[Split]
    engines: Sequence[str]
    seed: int
    ranking: bool = False
    python: str = sys.executable
    limit_s: float = LIMIT_S
    others: Mapping[str, Ask] | None = None
    more: Mapping[str, ComparedEngine] = field(default_factory=lambda: NO_MORE)
    target: str = ENGINES

    def works(self) -> Iterator[tuple[Split, str]]:
        """Yield the split and the engine of each line."""
        for split in self.splits:
            for engine in self.engines:
                yield split, engine


def key_of(split: Split, engine: str, plan: Plan) -> str:
    """Return a text that differs between lines that may differ."""
    # The version of foldin: a newer one may predict better.
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
    """Yield the lines of the plan, in order, and whether each was there already (in `done`, by its key)."""
    for split, engine in plan.works():
        # A digest of all arrays: only where it is needed.
        key = key_of(split, engine, plan) if store is not None or done else ""
        if done and key in done:
            yield done[key], True
            continue
        line = one(split, engine, plan)
        if store is not None and not line.failed:  # a failed one is tried again
            store.append(key, line)
        yield line, False


def one(split: Split, engine: str, plan: Plan) -> Line:
    """Return one line; a failure is one, too."""
    # Enough items for the longer of the two figures.
    question = split.question(NDCG_AT if plan.ranking and not split.sequential else 0)
    other = (plan.others or {}).get(engine)
    name = engine if other else find(engine, plan.more).title
    try:
        if other is not None:
            answered = other(question)
        else:
            arrays, cost = run_apart(
                plan.target,
                question,
                {"engine": engine},
                seed=plan.seed,
                python=plan.python,
                limit_s=plan.limit_s,
            )
            predicted = Predicted(**arrays, note=str(cost["note"]))
            answered = Answer(predicted, float(cost["seconds"]), float(cost["peak_mb"]))
        return judge(split, engine, name, question, answered)
    except EngineFailedError as exc:
        failed = not isinstance(exc, NotInstalledError)
        return Line(split.data.name, split.name, engine, name, skipped=str(exc), failed=failed)


def judge(split: Split, engine: str, name: str, question: Question, answered: Answer) -> Line:
    """Return the line of an answer. Raises `EngineFailedError` where predictions are missing or not finite,
    and `NotInstalledError` where nothing of the question is answered.
    """
    predicted, truth = answered.predicted, split.truth()
    line = Line(
        data=split.data.name,
        split=split.name,
        engine=engine,
        title=name,
        n_train=0 if split.sequential else int((~split.test).sum()),
        n_test=len(truth),
        seconds=answered.seconds,
        peak_mb=answered.peak_mb,
        note=predicted.note,
    )
    if not len(predicted.rating) and not predicted.top.size:
        none_known = "no user of the held-out ratings has others, so none can be ranked for"
        why = none_known if question.top else "ranks and does not rate: ask for rankings with --ranking"
        raise NotInstalledError(why)
    if len(predicted.rating):
        if predicted.rating.shape != truth.shape or not np.isfinite(predicted.rating).all():
            raise EngineFailedError(f"{name}: predictions are missing or not finite")
        known, scale = split.known_of_user(), split.data.scale
        found = figures(predicted, truth, known, scale, sequential=split.sequential)
        line = replace(line, **asdict(found))
    if predicted.top.size:
        wanted = Wanted.of(question.ranked_users(), question.test_user, question.test_item, truth)
        popularity = np.bincount(question.train_item, minlength=question.n_items)
        ranked = ranking_figures(predicted.top, wanted, split.data.scale, popularity, question.n_users)
        line = replace(line, **asdict(ranked))
    return line
