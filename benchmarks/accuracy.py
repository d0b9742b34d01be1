"""How wrong the predictions are on ratings that were not seen, beside what else people would use.

Invariant: no test rating reaches a predictor (see `evaluation.offline.jobs`), every engine has one
configuration for all data sets, and everything is seeded: the same command gives the same errors. Seconds are
CPU seconds of one core.
"""

import json
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from rich.console import Console

from benchmarks.data import datasets
from benchmarks.data.made import draw
from benchmarks.harness.command import Options, read
from benchmarks.harness.machine import Watch
from benchmarks.harness.progress import going_on
from benchmarks.harness.recorded import DOCS, Origin, has_output, origin, write_output, write_rows
from benchmarks.quality import cold_start as coldstart
from benchmarks.quality.cold_start import ColdCurve, Side
from benchmarks.quality.goals import (
    ALL_FOLDS,
    GAUSSIAN,
    KNOWS_ITEMS,
    KNOWS_USERS,
    SVDPP,
    TRUTH,
    Found,
    goals,
)
from benchmarks.quality.new_items import NewItems, measure_new_items
from benchmarks.quality.over_http import ENGINE as DEPLOYED
from benchmarks.quality.over_http import answer_over_http, play
from benchmarks.quality.shills import Shift, measure_shifts
from benchmarks.quality.tables import recorded_tables, show
from benchmarks.rivals.engines import RIVALS, TARGET, title
from evaluation.course.settings import EvaluationSettings
from evaluation.errors import EngineFailedError
from evaluation.offline.data import DataSet
from evaluation.offline.engines import ATTRIBUTES, AUTO, NO_MOMENT
from evaluation.offline.running import Ask, Plan, measure
from evaluation.offline.splits import Split, given_folds, in_time_order, random_splits
from evaluation.report import new_console, write_lines, write_whole
from evaluation.results.course import Summary
from evaluation.results.lines import LineStore
from processes.settings import choice, program, setting, whole

T = TypeVar("T")

NAME = "accuracy"
BASELINES = ("global-mean", "item-mean", "bias")
PEERS = ("surprise-svd", SVDPP, "surprise-knn", "myfm")
SLOW_PEER = "myfm-full"
IDS_ONLY = "auto:link=gaussian:no-set-effects:no-periods"
NO_PERIODS = "auto:no-periods"
ABLATION = (
    "bias",
    IDS_ONLY,
    "auto:link=gaussian:no-periods",
    "auto:link=gaussian:no-set-effects",
    "auto:link=gaussian",
    "auto:no-set-effects",
    NO_PERIODS,
    NO_MOMENT,
    "auto:no-sittings",
    "auto:no-drift",
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
    "cold",
    "new-items",
    "shills",
)
# Worlds of so many dimensions, of any size; on demand, as those of a million ratings take a while.
SLIDER = "made-slider"
MADE = {"made-3": 3, "made-12": 12, "made-40": 40, SLIDER: 3, "made-sessions-4": 3, "made-sessions-20": 3}
# Of these, the ratings of a session: who knows the world does not know its moods, and so is not asked.
SESSIONS = {"made-sessions-4": 4, "made-sessions-20": 20}
# Of a made set, held out: of a million, 50,000.
MADE_SHARE = 0.05
# The course takes 1,000 steps in 3 worlds after 10,000 known ratings: two worlds more, and fewer known ones.
WORLDS, STEPS, KNOWN = 5, 1000, (200, 1_000, 3_000, 10_000)
# Three, so that a figure has a standard deviation.
RANDOM_SPLITS = 3
# For a look in two minutes.
QUICK_SPLITS, QUICK_STEPS, QUICK_KNOWN = 1, 200, (200, 10_000)
QUICK_SECTIONS = ("environment", "ml-100k", "ml-latest-small", "ablation")


def _engine(text: str) -> str:
    if text not in (DEPLOYED, TRUTH, KNOWS_ITEMS, KNOWS_USERS):
        title(text)
    return text


def _count(text: str) -> int:
    digits, unit = (text[:-1], text[-1].lower()) if text[-1:].isalpha() else (text, "")
    factor = {"": 1, "k": 1_000, "m": 1_000_000}.get(unit, 0)
    if not (digits.isascii() and digits.isdigit() and 1_000 <= int(digits) * factor <= 100_000_000):
        raise ValueError(f"must be a number from 1k to 100M, not {text!r}")
    return int(digits) * factor


@dataclass(frozen=True, slots=True)
class Choice(Options):
    """What is to be run. `sets`, `engines`: empty for all sections, and for the engines of each."""

    sets: tuple[str, ...] = setting(
        (), "sections to run", choice((*SECTIONS, *MADE, "synthetic")), many=True, shown="all"
    )
    ratings: int = setting(1_000_000, "of a made set", _count, shown="1M")
    folds: tuple[int, ...] = setting((1, 2, 3, 4, 5), "of ml-100k", whole(1, 5), many=True)
    engines: tuple[str, ...] = setting(
        (), "engines to run", _engine, many=True, shown="those of each section"
    )
    quick: bool = setting(False, "a smaller table, in about two minutes")
    no_api: bool = setting(False, "start no deployment of ml-100k")
    slow: bool = setting(False, "also myFM with dates and implicit terms: 300 s")
    resume: bool = setting(False, "keep the lines that were finished before")
    picture: Path | None = setting(None, "also write the learning curves there (SVG)", Path)
    peers: str = setting(sys.executable, "interpreter that has the peers", program, shown="this one")

    def problems(self) -> list[str]:
        """What is contradictory in these options, one sentence each."""
        parts = self.quick or self.resume or self.engines or len(self.folds) < ALL_FOLDS
        refused = "--record goes with whole sections, not with --quick, --resume, --engines or --folds"
        # By name: `super()` does not know a dataclass with slots.
        return [*Options.problems(self), *([refused] if self.record and parts else [])]

    @property
    def sections(self) -> tuple[str, ...]:
        """What is run, in order."""
        return self.sets or (QUICK_SECTIONS if self.quick else SECTIONS)


def plans(
    section: str, data: DataSet, options: Choice, others: Mapping[str, Ask] = MappingProxyType({})
) -> Iterator[Plan]:
    """Yield what is run in a section. `others`: engines of this section alone."""
    peers = ("surprise-svd",) if options.quick else PEERS

    def plan(splits: Sequence[Split], engines: Sequence[str]) -> Plan:
        chosen = options.engines or engines
        apart = {DEPLOYED: answer_over_http, **others}
        return Plan(
            splits, chosen, options.seed, python=options.peers, others=apart, more=RIVALS, target=TARGET
        )

    match section:
        case "ml-100k":
            slow = (SLOW_PEER,) if options.slow else ()
            api = () if options.no_api or options.quick else (DEPLOYED,)
            # Slow peers and the deployment for the first fold alone: it is the one that others publish.
            first, *rest = (1,) if options.quick else options.folds
            own = (AUTO, ATTRIBUTES, *api, "neural")
            yield plan(given_folds(data, [first]), (*own, *BASELINES, *peers, *slow))
            if rest:
                yield plan(
                    given_folds(data, rest), (AUTO, *BASELINES, *(peer for peer in peers if peer != "myfm"))
                )
        case "prequential":
            yield plan([in_time_order(data)], (AUTO, "item-mean", "bias"))
        case _ if section in MADE:
            compared = (GAUSSIAN,) if section == SLIDER else (KNOWS_ITEMS, KNOWS_USERS)
            engines = (TRUTH, AUTO, *compared, *BASELINES, "surprise-svd")
            if section in SESSIONS:
                engines = (AUTO, NO_MOMENT, NO_PERIODS, *BASELINES)
            yield plan(random_splits(data, 1, options.seed, MADE_SHARE), engines)
        case "ablation":
            yield plan(given_folds(data, [1]), ABLATION[:4] if options.quick else ABLATION)
        case _:
            count = QUICK_SPLITS if options.quick else RANDOM_SPLITS
            engines = (
                AUTO,
                *BASELINES,
                *(("surprise-svd",) if options.quick else ("surprise-svd", SVDPP, "surprise-knn")),
            )
            yield plan(random_splits(data, count, options.seed), engines)


def run(options: Choice, console: Console) -> Found:
    """Run every section. Raises `BenchmarkError` where data or a deployment is missing."""
    found = Found()
    store = LineStore(options.output / NAME)
    done = store.begin(resume=options.resume)
    for section in options.sections:
        if section == "environment":
            found.played = _played(options)
        elif section == "cold":
            found.cold = _kept(options, section, ColdCurve, partial(_cold, options, console))
        elif section == "new-items":
            measured = partial(measure_new_items, seed=options.seed)
            found.new_items = _kept(options, section, NewItems, measured)
        elif section == "shills":
            found.shifts = _kept(options, section, Shift, partial(measure_shifts, seed=options.seed))
        else:
            lines = found.lines.setdefault(section, [])
            others: dict[str, Ask] = {}
            if section in MADE:
                size, slider = options.size(options.ratings, 1_000), section == SLIDER
                made = draw(
                    *(size, MADE[section]),
                    seed=options.seed,
                    slider=slider,
                    a_session=SESSIONS.get(section, 0),
                    name=section,
                )
                data, others[TRUTH] = made.data, made.answer
                if not slider:
                    others[KNOWS_ITEMS] = partial(made.answer, knows="item")
                    others[KNOWS_USERS] = partial(made.answer, knows="user")
            else:
                data = datasets.load(section, scale=options.scale, seed=options.seed)
            for plan in plans(section, data, options, others):
                for line, _ in measure(plan, store, done):
                    lines.append(line)
                    text = f"{line.data} {line.split}, {line.summary()}"
                    console.print(text, style="dim", highlight=False, markup=False)
    return found


def _played(options: Choice) -> list[Summary]:
    steps = max(10, round((QUICK_STEPS if options.quick else STEPS) * min(options.scale, 1)))
    folder = options.output / "environment"
    worlds, known = (1, QUICK_KNOWN) if options.quick else (WORLDS, KNOWN)
    settings = {"worlds": worlds, "steps": steps, "known": known, "seed": options.seed}
    course = EvaluationSettings(runs=worlds, steps=steps, known=known, seed=options.seed, output=folder)
    path = folder / "played.json"
    return _kept_or(path, settings, Summary, lambda: play(course), resume=options.resume)


def _kept(
    options: Choice, section: str, make: Callable[..., T], measure: Callable[[DataSet], Iterable[T]]
) -> list[T]:
    """Return the rows of a section, kept or measured on its data set."""
    data = datasets.load(section, scale=options.scale, seed=options.seed)
    path = options.output / NAME / f"{section.replace('-', '_')}.json"
    settings = {"data": data.digest(), "seed": options.seed}
    return _kept_or(path, settings, make, lambda: list(measure(data)), resume=options.resume)


def _cold(options: Choice, console: Console, data: DataSet) -> Iterator[ColdCurve]:
    sides: tuple[Side, ...] = ("user", "item")
    for side in sides:
        for engine in coldstart.ENGINES:
            try:
                yield coldstart.curve(data, side, engine, options.seed)
            # One engine that fails costs its own lines, not the table.
            except EngineFailedError as exc:
                console.print(f"cold start, new {side}s: {exc}", style="red", markup=False)


def _kept_or(
    path: Path,
    settings: Mapping[str, Any],
    make: Callable[..., T],
    measure: Callable[[], Sequence[T]],
    *,
    resume: bool,
) -> list[T]:
    """Return the rows in `path`, each made by `make(**fields)`, if there are any for these settings and
    `resume` says so; else keep what `measure` returns: dataclasses of numbers, texts and tuples.
    """
    # Another version may predict otherwise. Through JSON, as the file has it: tuples become lists.
    stamped = json.loads(json.dumps({**settings, "version": version("foldin")}))
    if resume:
        with suppress(OSError, ValueError):
            document = json.loads(path.read_text())
            if document.get("settings") == stamped:
                return [make(**_with_tuples(row)) for row in document["rows"]]
    found: list[Any] = list(measure())
    # Whole: torn by a kill it would count as no rows, and all be measured again.
    write_whole(path, json.dumps({"settings": stamped, "rows": [asdict(row) for row in found]}) + "\n")
    return found


def _with_tuples(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in row.items()}


def _record(found: Found, of: Origin, options: Choice, console: Console) -> None:
    path, usual = DOCS / "accuracy.md", options.ratings == Choice().ratings
    write_rows(path, NAME, list(goals(found)), of, whole=False)
    for section in found.sections():
        # The tables of made sets are of one size; those of others have rows.
        name = f"{NAME} {section}" if usual or section not in MADE else f"{NAME} {section} of another size"
        if has_output(path, name):
            write_output(path, name, list(recorded_tables(found, section)), of)
        else:
            console.print(f"{path} has no place for the tables of {section}: only its rows are there")


def main(argv: Sequence[str]) -> int:
    """Print the tables of docs/accuracy.md; return 0, or 1 where an engine failed."""
    options = read(Choice, NAME, __doc__, argv)
    console = new_console()
    of, watch = origin(), Watch()
    with going_on(NAME):
        found = run(options, console)
    full = options.scale == 1 and not options.quick
    show(found, console, full=full)
    if options.record:
        _record(found, of, options, console)
    watched = watch.since()
    # Errors do not depend on the load: a busy machine is named, not refused as for figures of speed.
    if watched.others is not None and watched.others > 0.1:
        console.print(
            f"others used {watched.others:.0%} of the cores: errors are right, seconds are a bit long"
        )
    written = write_lines(found.all_lines(), options.output / f"{NAME}.csv")
    console.print(f"{watched.seconds:.0f} s in all; written to {written}")
    if options.picture is not None and found.played:
        shutil.copyfile(options.output / "environment" / "learning-curve.svg", options.picture)
        console.print(f"wrote {options.picture}")
    return 1 if any(line.failed for line in found.all_lines()) else 0
