"""How wrong the predictions are on ratings that were not seen, beside what else people would use.

Invariant: no test rating reaches a predictor (see `evaluation.offline.jobs`), every engine has one
configuration for all data sets, and everything is seeded: the same command gives the same errors. Seconds are
CPU seconds of one core.
"""

import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from rich.console import Console

from benchmarks.data import datasets
from benchmarks.errors import BenchmarkError
from benchmarks.harness import kept
from benchmarks.harness.command import end_in_order, parser
from benchmarks.harness.machine import Watch
from benchmarks.quality.goals import ALS, IMPLICIT, SVDPP, Found
from benchmarks.quality.over_http import ENGINE as DEPLOYED
from benchmarks.quality.over_http import answer_over_http, play
from benchmarks.quality.tables import show
from evaluation.course.settings import EvaluationSettings
from evaluation.errors import EngineFailedError
from evaluation.offline import cold_start as coldstart
from evaluation.offline.cold_start import ColdCurve, Side
from evaluation.offline.data import DataSet
from evaluation.offline.engines import AUTO, title
from evaluation.offline.running import Plan, measure
from evaluation.offline.splits import Split, given_folds, in_time_order, random_splits
from evaluation.report import new_console, write_lines
from evaluation.results.course import Summary
from evaluation.results.lines import LineStore

NAME = "accuracy"
BASELINES = ("global-mean", "item-mean", "bias")
PEERS = ("surprise-svd", SVDPP, "surprise-knn", "myfm")
SLOW_PEER = "myfm-full"
IDS_ONLY = "auto:link=gaussian:no-set-effects:no-periods"
ABLATION = (
    "bias",
    IDS_ONLY,
    "auto:link=gaussian:no-periods",
    "auto:link=gaussian:no-set-effects",
    "auto:link=gaussian",
    "auto:no-set-effects",
    "auto:no-periods",
    AUTO,
    "auto:rank=4",
    "auto:rank=16",
)
SECTIONS = (
    "environment",
    "ml-100k",
    "prequential",
    "ml-latest-small",
    "lectures",
    "ablation",
    "ranking",
    "cold",
)
# The course takes 1,000 steps in 3 worlds after 10,000 known ratings: two worlds more, and fewer known ones.
WORLDS, STEPS, KNOWN = 5, 1000, (200, 1_000, 3_000, 10_000)
# Three, so that a figure has a standard deviation.
RANDOM_SPLITS = 3
# For a look in two minutes.
QUICK_SPLITS, QUICK_STEPS, QUICK_KNOWN = 1, 200, (200, 10_000)


@dataclass(frozen=True, slots=True)
class Choice:
    """What is to be run, after the flags. `engines`: None for those that belong to each section."""

    sections: Sequence[str]
    engines: Sequence[str] | None
    folds: Sequence[int]
    scale: float
    seed: int
    quick: bool
    api: bool
    slow: bool
    peers: str
    output: Path
    resume: bool
    picture: Path | None


def thinned(data: DataSet, scale: float, seed: int) -> DataSet:
    """Return a fraction of the ratings, at random, in their order: to see whether everything works."""
    if scale >= 1:
        return data
    n = len(data.ratings.value)
    kept = np.sort(np.random.default_rng(seed).permutation(n)[: max(200, round(n * scale))])
    return replace(data, ratings=data.part(kept))


def load(name: str, *, scale: float, seed: int) -> DataSet:
    """Return the data set of a section. Raises `BenchmarkError` where it cannot be had."""
    loaders: dict[str, Callable[[], DataSet]] = {
        "ml-latest-small": datasets.ml_latest_small,
        "lectures": datasets.lectures,
        "synthetic": lambda: datasets.synthetic(2000, 1000, 40_000, seed=seed),
    }
    return thinned(loaders.get(name, datasets.ml_100k)(), scale, seed)


def plans(section: str, data: DataSet, choice: Choice) -> Iterator[Plan]:
    """Yield what is run in a section."""
    peers = ("surprise-svd",) if choice.quick else PEERS

    def plan(splits: Sequence[Split], engines: Sequence[str], *, ranking: bool = False) -> Plan:
        others = {DEPLOYED: answer_over_http}
        chosen = choice.engines or engines
        return Plan(splits, chosen, choice.seed, ranking=ranking, python=choice.peers, others=others)

    match section:
        case "ml-100k":
            slow = (SLOW_PEER,) if choice.slow else ()
            api = (DEPLOYED,) if choice.api else ()
            # Slow peers and the deployment for the first fold alone: it is the one that others publish.
            first, *rest = choice.folds
            yield plan(given_folds(data, [first]), (AUTO, *api, "neural", *BASELINES, *peers, *slow))
            if rest:
                yield plan(
                    given_folds(data, rest), (AUTO, *BASELINES, *(peer for peer in peers if peer != "myfm"))
                )
        case "prequential":
            yield plan([in_time_order(data)], (AUTO, "item-mean", "bias"))
        case "ablation":
            yield plan(given_folds(data, [1]), ABLATION[:4] if choice.quick else ABLATION)
        case "ranking":
            yield plan(random_splits(data, 3, choice.seed), (IMPLICIT, ALS, "popularity", AUTO), ranking=True)
        case _:
            count = QUICK_SPLITS if choice.quick else RANDOM_SPLITS
            engines = (
                AUTO,
                *BASELINES,
                *(("surprise-svd",) if choice.quick else ("surprise-svd", SVDPP, "surprise-knn")),
            )
            yield plan(random_splits(data, count, choice.seed), engines)


def run(choice: Choice, console: Console) -> Found:
    """Run every section. Raises `BenchmarkError` where data or a deployment is missing."""
    found = Found()
    store = LineStore(choice.output / NAME)
    done = store.load() if choice.resume else {}
    # A line that another version has measured must not stand beside those of this one.
    if not choice.resume:
        store.clear()
    for section in choice.sections:
        if section == "environment":
            found.played = _played(choice)
        elif section == "cold":
            found.cold = _cold(choice, console)
        else:
            lines = found.lines.setdefault(section, [])
            data = load(section, scale=choice.scale, seed=choice.seed)
            for plan in plans(section, data, choice):
                for line, _ in measure(plan, store, done):
                    lines.append(line)
                    text = f"{line.data} {line.split}, {line.summary()}"
                    console.print(text, style="dim", highlight=False, markup=False)
    return found


def _played(choice: Choice) -> list[Summary]:
    steps = max(10, round((QUICK_STEPS if choice.quick else STEPS) * min(choice.scale, 1)))
    folder = choice.output / "environment"
    worlds, known = (1, QUICK_KNOWN) if choice.quick else (WORLDS, KNOWN)
    settings = {"worlds": worlds, "steps": steps, "known": known, "seed": choice.seed}
    kept_rows = kept.load(folder / "played.json", settings, Summary) if choice.resume else None
    if kept_rows is not None:
        return kept_rows
    played = play(EvaluationSettings(runs=worlds, steps=steps, known=known, seed=choice.seed, output=folder))
    kept.save(folder / "played.json", settings, played)
    return played


def _cold(choice: Choice, console: Console) -> list[ColdCurve]:
    data = load("cold", scale=choice.scale, seed=choice.seed)
    path, settings = choice.output / NAME / "cold.json", {"data": data.digest(), "seed": choice.seed}
    curves = kept.load(path, settings, ColdCurve) if choice.resume else None
    if curves is not None:
        return curves
    curves = []
    sides: tuple[Side, ...] = ("user", "item")
    for side in sides:
        for engine in coldstart.ENGINES:
            try:
                curves.append(coldstart.curve(data, side, engine, choice.seed))
            # One engine that fails costs its own lines, not the table.
            except EngineFailedError as exc:
                console.print(f"cold start, new {side}s: {exc}", style="red", markup=False)
    kept.save(path, settings, curves)
    return curves


def main(argv: Sequence[str]) -> int:
    """Print the tables of docs/accuracy.md; return 0, or 2 where what cannot be skipped is missing."""
    choice = _choice(argv)
    console = new_console()
    end_in_order()
    watch = Watch()
    try:
        found = run(choice, console)
    except BenchmarkError as exc:
        print(f"foldin bench {NAME}: {exc}", file=sys.stderr)
        return 2
    show(found, console, full=choice.scale == 1 and not choice.quick)
    watched = watch.since()
    # Errors do not depend on the load: a busy machine is named, not refused as for figures of speed.
    if watched.others is not None and watched.others > 0.1:
        console.print(
            f"others used {watched.others:.0%} of the cores: errors are right, seconds are a bit long"
        )
    written = write_lines(found.all_lines(), choice.output / f"{NAME}.csv")
    console.print(f"{watched.seconds:.0f} s in all; written to {written}")
    if choice.picture is not None and found.played:
        shutil.copyfile(choice.output / "environment" / "learning-curve.svg", choice.picture)
        console.print(f"wrote {choice.picture}")
    return 1 if any(line.failed for line in found.all_lines()) else 0


def _choice(argv: Sequence[str]) -> Choice:
    flags = parser(NAME, __doc__)
    flags.add_argument("--sets", nargs="+", default=None, choices=[*SECTIONS, "synthetic"], metavar="SET")
    folds = [1, 2, 3, 4, 5]
    flags.add_argument("--folds", nargs="+", type=int, default=folds, choices=folds, metavar="J")
    flags.add_argument("--engines", nargs="+", type=_engine, default=None, metavar="ENGINE")
    flags.add_argument("--quick", action="store_true", help="a smaller table, in about two minutes")
    flags.add_argument("--no-api", dest="api", action="store_false", help="start no deployment of ml-100k")
    flags.add_argument("--slow", action="store_true", help="also myFM with dates and implicit terms: 300 s")
    flags.add_argument("--resume", action="store_true", help="keep the lines that were finished before")
    flags.add_argument(
        "--picture", type=Path, metavar="FILE", help="also write the learning curves there (SVG)"
    )
    flags.add_argument(
        "--peers", default=sys.executable, metavar="PYTHON", help="interpreter that has the peers"
    )
    options = flags.parse_args(argv)
    quick = [section for section in SECTIONS if section not in ("prequential", "lectures", "ranking", "cold")]
    return Choice(
        sections=options.sets or (quick if options.quick else SECTIONS),
        engines=options.engines,
        folds=[1] if options.quick else options.folds,
        scale=options.scale,
        seed=options.seed,
        quick=options.quick,
        api=options.api and not options.quick,
        slow=options.slow,
        peers=options.peers,
        output=options.output,
        resume=options.resume,
        picture=options.picture,
    )


def _engine(text: str) -> str:
    if text != DEPLOYED:
        title(text)
    return text
