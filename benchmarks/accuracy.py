"""How wrong the predictions are on ratings that were not seen, beside what else people would use.

Invariant: no test rating reaches a predictor (see `harness.jobs`), every engine has one configuration for all
data sets, and everything is seeded: the same command gives the same errors. Seconds are of one core.
"""

import csv
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from benchmarks.harness import datasets
from benchmarks.harness.command import BenchmarkError, console_for, end_in_order, parser
from benchmarks.harness.datasets import DataSet
from benchmarks.harness.deployed import ENGINE as DEPLOYED
from benchmarks.harness.deployed import Played, answer_over_http, play
from benchmarks.harness.jobs import Answer, NotInstalledError, Question, answer
from benchmarks.harness.machine import Watch
from benchmarks.harness.report import Row, Target, number

NAME = "accuracy"
INTERVAL = 1.6449  # standard deviations on each side of a central 90 % interval
PEERS = ("Surprise SVD", "Surprise SVD++", "Surprise KNNBaseline", "myFM")
SLOW_PEERS = ("myFM, dates and implicit",)
BASELINES = ("global mean", "item mean", "bias")
ENGINES = ("foldin", *BASELINES, *PEERS, *SLOW_PEERS)
SETS = ("ml-100k", "ml-latest-small", "lectures", "prequential", "environment")
WORLDS, STEPS, KNOWN = 5, 1000, (200, 1_000, 3_000, 10_000)
RANDOM_SPLITS = 3
PUBLISHED = (
    ("ml-100k u1", "GHRS (with demographics)", 0.887, "Darban and Valipour, 2022"),
    ("ml-100k u1", "GLocal-K", 0.8889, "Han et al., 2021"),
    ("ml-100k u1", "myFM (dates, implicit; Gibbs)", 0.8898, "Ohtsuki, 2020, run by hand for 300 s"),
    ("ml-100k prequential", "river", 0.9479, "river's documentation"),
)


@dataclass(frozen=True, slots=True)
class Line:
    """One engine on one split. `coverage`: share of the test ratings inside their 90 % intervals; NaN: it has
    none."""

    data: str
    split: str
    engine: str
    rmse: float = float("nan")
    mae: float = float("nan")
    coverage: float = float("nan")
    seconds: float = float("nan")
    peak_mb: float = float("nan")
    note: str = ""
    skipped: str = ""
    failed: bool = False


@dataclass(frozen=True, slots=True)
class Coverage:
    """For each test rating whether its interval held it, and how many ratings its user had in training."""

    held: npt.NDArray[np.bool_]
    counts: npt.NDArray[np.int64]

    def deciles(self) -> tuple[float, ...]:
        """Share held in each tenth of the test ratings, by the user's count, lowest first."""
        order = np.argsort(self.counts, kind="stable")
        return tuple(float(self.held[part].mean()) for part in np.array_split(order, 10) if len(part))


@dataclass(frozen=True, slots=True)
class Split:
    """One division of a data set. `test`: mask of the ratings that are asked for."""

    data: DataSet
    name: str
    test: npt.NDArray[np.bool_]

    def question(self) -> Question:
        """The training ratings, and of the others who, what and when."""
        train, test = self.data.part(~self.test), self.data.part(self.test)
        scale = self.data.scale
        return Question(
            n_users=self.data.n_users,
            n_items=self.data.n_items,
            low=scale.low,
            high=scale.high,
            step=scale.step or 0.0,
            train_user=train.user_row,
            train_item=train.item_row,
            train_value=train.value,
            train_time=train.time,
            test_user=test.user_row,
            test_item=test.item_row,
            test_time=test.time,
        )

    def truth(self) -> npt.NDArray[np.float64]:
        """The ratings asked for."""
        return self.data.ratings.value[self.test]


def given_splits(data: DataSet, folds: Sequence[int]) -> list[Split]:
    """Splits u1 to u5 of MovieLens 100K, as far as asked; a smaller set is cut into five in the same way."""
    n = len(data.ratings.value)
    fifth = n // 5
    splits = []
    for fold in folds:
        test = np.zeros(n, dtype=np.bool_)
        test[fifth * (fold - 1) : fifth * fold] = True
        splits.append(Split(data, f"u{fold}", test))
    return splits


def random_splits(data: DataSet, count: int, seed: int) -> list[Split]:
    """`count` random splits, one fifth asked for."""
    n = len(data.ratings.value)
    splits = []
    for i in range(count):
        test = np.zeros(n, dtype=np.bool_)
        test[np.random.default_rng([seed, i]).permutation(n)[: n // 5]] = True
        splits.append(Split(data, f"random {i + 1}", test))
    return splits


def in_time_order(data: DataSet) -> Split:
    """The ratings in the order of time, all of them to be predicted before they are learned."""
    order = np.argsort(data.ratings.time, kind="stable")
    ordered = replace(data, ratings=data.part(order))
    return Split(ordered, "in time order", np.zeros(len(order), dtype=np.bool_))


def judge(
    split: Split, engine: str, given: Answer, truth: npt.NDArray[np.float64]
) -> tuple[Line, Coverage | None]:
    """The line of an answer. Raises `BenchmarkError` where a prediction is not finite."""
    if given.rating.shape != truth.shape or not np.isfinite(given.rating).all():
        raise BenchmarkError(
            f"{engine} on {split.data.name} {split.name}: predictions are missing or not finite"
        )
    error = truth - given.rating
    coverage = None
    if len(given.std):
        ratings = split.data.ratings
        counts = np.bincount(ratings.user_row[~split.test], minlength=split.data.n_users)
        held = np.abs(error) <= INTERVAL * given.std
        who = ratings.user_row[split.test] if split.test.any() else ratings.user_row
        coverage = Coverage(held, counts[who])
    line = Line(
        data=split.data.name,
        split=split.name,
        engine=engine,
        rmse=float(np.sqrt(np.mean(error**2))),
        mae=float(np.mean(np.abs(error))),
        coverage=float(coverage.held.mean()) if coverage else float("nan"),
        seconds=given.seconds,
        peak_mb=given.peak_mb,
        note=given.note,
    )
    return line, coverage


@dataclass(slots=True)
class Results:
    """Lines as they come, of the Foldin ones which intervals held, and how the environment was played."""

    lines: list[Line] = field(default_factory=list)
    coverages: dict[tuple[str, str], list[Coverage]] = field(default_factory=dict)
    played: list[Played] = field(default_factory=list)

    def add(self, line: Line, coverage: Coverage | None) -> None:
        """Take one line in."""
        self.lines.append(line)
        if coverage is not None:
            self.coverages.setdefault((line.data, line.engine), []).append(coverage)

    def rmse(self, data: str, engine: str, split: str | None = None) -> tuple[float, ...]:
        """The errors of an engine, one a split."""
        return tuple(
            line.rmse
            for line in self.lines
            if line.data == data
            and line.engine == engine
            and not line.skipped
            and split in (None, line.split)
        )

    def deciles(self, data: str, engine: str) -> tuple[float, ...]:
        """Coverage by decile over all splits together; empty where the engine gives no standard deviation."""
        parts = self.coverages.get((data, engine), [])
        if not parts:
            return ()
        held = np.concatenate([part.held for part in parts])
        return Coverage(held, np.concatenate([part.counts for part in parts])).deciles()


def measure(
    splits: Sequence[Split], engines: Sequence[str], *, seed: int, peers: str, say: Callable[[str], None]
) -> Results:
    """Every engine on every split; what is not installed gives a line that says so."""
    results = Results()
    for split in splits:
        sequential = not split.test.any()
        question = split.question()
        truth = split.data.ratings.value if sequential else split.truth()
        for engine in engines:
            python = peers if engine in PEERS + SLOW_PEERS else sys.executable
            try:
                if engine == DEPLOYED:
                    given = answer_over_http(question)
                else:
                    given = answer(engine, question, seed=seed, python=python)
            except NotInstalledError as exc:
                results.add(Line(split.data.name, split.name, engine, skipped=str(exc)), None)
                continue
            except BenchmarkError as exc:
                say(f"{split.data.name} {split.name}: {exc}")
                results.add(Line(split.data.name, split.name, engine, skipped=str(exc), failed=True), None)
                continue
            line, coverage = judge(split, engine, given, truth)
            results.add(line, coverage)
            say(f"{line.data} {line.split}, {engine}: RMSE {line.rmse:.4f} in {line.seconds:.1f} s")
    return results


def goals(results: Results) -> Iterator[Row]:
    """The rows that have a goal, as far as their parts were run."""
    for engine in ("foldin", DEPLOYED):
        u1 = results.rmse("ml-100k", engine, "u1")
        all_folds = results.rmse("ml-100k", engine)
        if u1:
            yield Row(f"ml-100k u1, {engine}", "RMSE", u1, Target(0.882, 0.887, higher_is_better=False))
        if len(all_folds) == 5:
            mean = (float(np.mean(all_folds)),)
            target = Target(0.873, 0.880, higher_is_better=False)
            yield Row(f"ml-100k mean of u1..u5, {engine}", "RMSE", mean, target)
    online = results.rmse("ml-100k", "foldin online", "in time order")
    if online:
        target = Target(0.925, 0.938, higher_is_better=False)
        yield Row("ml-100k in time order, each before it is learned", "RMSE", online, target)
    for data in dict.fromkeys(line.data for line in results.lines):
        own, other = results.rmse(data, "foldin"), results.rmse(data, "Surprise SVD++")
        if data != "ml-100k" and own and other:
            ratio = (float(np.mean(own) / np.mean(other)),)
            target = Target(0.97, 1.0, higher_is_better=False)
            detail = f"{np.mean(own):.4f} against {np.mean(other):.4f}"
            yield Row(f"{data}: foldin / SVD++", "x", ratio, target, detail=detail)
        deciles = results.deciles(data, "foldin")
        if deciles:
            worst = (max(abs(share - 0.90) for share in deciles),)
            target = Target(0.02, 0.04, higher_is_better=False)
            detail = " ".join(f"{share:.3f}" for share in deciles)
            yield Row(f"{data}: 90 % intervals, worst decile is off by", "", worst, target, detail=detail)
    for one in results.played:
        if (one.player, one.known) == ("deployed", 10_000):
            target = Target(0.040, 0.046, higher_is_better=False)
            detail = " ".join(f"{mse:.4f}" for mse in one.worlds)
            yield Row("environment, 10,000 known, through the API", "MSE", (one.mse,), target, detail=detail)
    seconds = tuple(
        line.seconds for line in results.lines if (line.data, line.engine) == ("ml-100k", "foldin")
    )
    if seconds:
        yield Row("ml-100k: fit and predict, one core", "s", seconds, Target(10, 30, higher_is_better=False))


def table(results: Results) -> Table:
    """One line a data set and engine: means over the splits."""
    shown = Table(
        title="errors on unseen ratings (means over the splits)", title_justify="left", box=SIMPLE_HEAD
    )
    for name in (
        "data",
        "splits",
        "engine",
        "RMSE",
        "MAE",
        "in 90 %",
        "by decile",
        "seconds",
        "peak MB",
        "note",
    ):
        shown.add_column(name, overflow="fold", no_wrap=name not in ("note", "data"))
    groups = dict.fromkeys((line.data, line.engine, line.split == "in time order") for line in results.lines)
    for data, engine, sequential in groups:
        lines = [
            line
            for line in results.lines
            if (line.data, line.engine, line.split == "in time order") == (data, engine, sequential)
        ]
        lines = [line for line in lines if not line.failed] or lines
        name = f"{data} in time order" if sequential else data
        if lines[0].skipped:
            shown.add_row(
                name, str(len(lines)), engine, *[""] * 6, f"skipped: {lines[0].skipped}", style="dim"
            )
            continue
        deciles = results.deciles(data, engine)
        shown.add_row(
            name,
            str(len(lines)),
            engine,
            f"{_mean(lines, 'rmse'):.4f}",
            f"{_mean(lines, 'mae'):.4f}",
            f"{_mean(lines, 'coverage'):.1%}" if deciles else "",
            f"{min(deciles):.1%} to {max(deciles):.1%}" if deciles else "",
            f"{_mean(lines, 'seconds'):.1f}",
            f"{max(line.peak_mb for line in lines):.0f}",
            lines[0].note,
        )
    return shown


def _mean(lines: Sequence[Line], name: str) -> float:
    return float(np.mean([getattr(line, name) for line in lines]))


def play_table(played: Sequence[Played]) -> Table:
    """Mean squared error of each player, one column for each length of the known history."""
    lengths = sorted({one.known for one in played})
    shown = Table(title="rating environment, mean squared error", title_justify="left", box=SIMPLE_HEAD)
    for name in ("player", *(f"{known:,} known" for known in lengths), "missing", "seconds to learn"):
        shown.add_column(name)
    for player in dict.fromkeys(one.player for one in played):
        by_length = {one.known: one for one in played if one.player == player}
        errors = [f"{by_length[known].mse:.4f}" if known in by_length else "" for known in lengths]
        missing = sum(one.missing for one in by_length.values())
        shown.add_row(
            player, *errors, str(missing), f"{max(one.prepare_s for one in by_length.values()):.1f}"
        )
    return shown


def goal_table(rows: Sequence[Row]) -> Table:
    """What was to be reached, and whether it was."""
    shown = Table(title="goals", title_justify="left", box=SIMPLE_HEAD)
    for name in ("work", "figure", "goal", "floor", "verdict", "detail"):
        shown.add_column(name, overflow="fold", no_wrap=name not in ("work", "detail"))
    for row in rows:
        assert row.target is not None
        shown.add_row(
            row.work,
            f"{number(row.median)} {row.unit}".strip(),
            f"<= {number(row.target.goal)}",
            f"<= {number(row.target.floor)}",
            row.verdict,
            row.detail,
        )
    return shown


def write_csv(results: Results, path: Path) -> Path:
    """Every line, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    with unfinished.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(Line.__dataclass_fields__))
        writer.writeheader()
        writer.writerows(asdict(line) for line in results.lines)
    unfinished.replace(path)
    return path


def thinned(data: DataSet, scale: float, seed: int) -> DataSet:
    """A fraction of the ratings, at random, in their order: for a look at whether everything works."""
    if scale >= 1:
        return data
    n = len(data.ratings.value)
    kept = np.sort(np.random.default_rng(seed).permutation(n)[: max(200, round(n * scale))])
    return replace(data, ratings=data.part(kept))


def load(name: str, *, scale: float, seed: int) -> DataSet:
    """A data set by its name."""
    loaders: dict[str, Callable[[], DataSet]] = {
        "ml-100k": datasets.ml_100k,
        "prequential": datasets.ml_100k,
        "ml-latest-small": datasets.ml_latest_small,
        "lectures": datasets.lectures,
        "synthetic": lambda: datasets.synthetic(2000, 1000, 40_000, seed=seed),
    }
    return thinned(loaders[name](), scale, seed)


def main(argv: Sequence[str]) -> int:
    """The table of docs/accuracy.md; 0 when it was printed, 2 when something is missing that cannot be
    skipped."""
    flags = parser(NAME, __doc__.splitlines()[0])
    flags.add_argument("--sets", nargs="+", default=list(SETS), choices=[*SETS, "synthetic"], metavar="SET")
    flags.add_argument(
        "--folds", nargs="+", type=int, default=[1, 2, 3, 4, 5], choices=range(1, 6), metavar="J"
    )
    flags.add_argument("--engines", nargs="+", default=None, choices=ENGINES, metavar="ENGINE")
    flags.add_argument("--api", action="store_true", help="also ask a whole deployment over HTTP")
    flags.add_argument("--slow", action="store_true", help="also what takes minutes a split: myFM with dates")
    flags.add_argument(
        "--peers", default=sys.executable, metavar="PYTHON", help="interpreter that has the peers"
    )
    options = flags.parse_args(argv)
    console = console_for()
    end_in_order()
    engines: Sequence[str] = (
        options.engines or ENGINES[: len(ENGINES) - (0 if options.slow else len(SLOW_PEERS))]
    )
    if options.api:
        engines = (*engines, DEPLOYED)
    watch = Watch()
    results = Results()
    try:
        for name in options.sets:
            if name == "environment":
                steps = max(10, round(STEPS * min(options.scale, 1)))
                results.played = play(
                    worlds=WORLDS, steps=steps, known=KNOWN, seed=options.seed, folder=options.output / name
                )
                continue
            data = load(name, scale=options.scale, seed=options.seed)
            chosen: Sequence[str] = engines
            if name == "prequential":
                splits, chosen = [in_time_order(data)], ("foldin online", "bias online")
            elif name == "ml-100k":
                splits = given_splits(data, options.folds)
            else:
                splits = random_splits(data, RANDOM_SPLITS, options.seed)
            found = measure(splits, chosen, seed=options.seed, peers=options.peers, say=_teller(console))
            results.lines += found.lines
            for key, coverages in found.coverages.items():
                results.coverages.setdefault(key, []).extend(coverages)
    except BenchmarkError as exc:
        print(f"foldin bench {NAME}: {exc}", file=sys.stderr)
        return 2
    if results.lines:
        console.print(table(results))
    if results.played:
        console.print(play_table(results.played))
    for about, engine, rmse, source in PUBLISHED:
        console.print(f"published for {about}: {rmse:.4f}, {engine} ({source})", style="dim", highlight=False)
    if options.scale == 1:
        console.print(goal_table(list(goals(results))))
    watched = watch.since()
    if watched.others is not None and watched.others > 0.1:
        console.print(
            f"others used {watched.others:.0%} of the cores: the seconds say little, the errors are right"
        )
    console.print(f"written to {write_csv(results, options.output / f'{NAME}.csv')}")
    return 1 if any(line.failed for line in results.lines) else 0


def _teller(console: Console) -> Callable[[str], None]:
    def say(text: str) -> None:
        console.print(text, style="dim", highlight=False)

    return say


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
