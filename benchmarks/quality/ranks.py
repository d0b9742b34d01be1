"""Is the rank that a fit chooses by itself as good as the best one that a person could have told it?

Invariant: every fit of a set has the same ratings, seed and settings but for the rank. Two real sets and four
made ones, of 3, 12 and 40 dimensions and four scales: `auto` beside ranks 4, 8, 16, 24 and 32, error on a
random tenth and CPU seconds.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from benchmarks.data import datasets
from benchmarks.data.datasets import HALF_STARS, synthetic
from benchmarks.harness.command import Options, read
from evaluation.offline.data import DataSet
from evaluation.offline.engines import AUTO
from evaluation.offline.running import Plan, measure
from evaluation.offline.splits import random_splits
from evaluation.report import new_console, new_table
from evaluation.results.lines import Line, LineStore
from factors import Scale
from processes.settings import choice, setting, whole

NAME = "ranks"
RANKS = (4, 8, 16, 24, 32)
SHARE = 0.1
# What `auto` may lose against the best rank, and how much longer it may take than that one.
MOST_WORSE, MOST_LONGER = 1.002, 1.5


@dataclass(frozen=True, slots=True)
class Made:
    """A set drawn from `rank` dimensions: of so many `ratings`, on this `scale`."""

    rank: int
    ratings: int
    scale: Scale

    def draw(self, name: str, scale: float, seed: int) -> DataSet:
        """Draw it, `scale` of its size: a hundred ratings a user, a fifth as many items as users."""
        n = max(5_000, round(self.ratings * scale))
        found = synthetic(n // 100, max(100, n // 500), n, rank=self.rank, seed=seed, scale=self.scale)
        return replace(found, name=name)


MADE: Mapping[str, Made] = {
    "made-3": Made(3, 200_000, HALF_STARS),
    "made-12": Made(12, 420_000, Scale(1, 10, 1)),
    "made-12-continuous": Made(12, 1_000_000, Scale(-10, 10)),
    "made-40": Made(40, 2_000_000, HALF_STARS),
}
SETS = ("ml-100k", "ml-latest-small", *MADE)


@dataclass(frozen=True, slots=True)
class RankOptions(Options):
    """What is to be fitted."""

    sets: tuple[str, ...] = setting(SETS, "to fit", choice(SETS), many=True, shown="all")
    ranks: tuple[int, ...] = setting(RANKS, "beside `auto`", whole(1, 256), many=True)
    resume: bool = setting(False, "keep the lines that were finished before")


def main(argv: Sequence[str]) -> int:
    """Print a line for each set; return 0, or 1 where `auto` is worse or slower than it may be."""
    options, console = read(RankOptions, NAME, __doc__, argv), new_console()
    store = LineStore(options.output / NAME)
    done = store.begin(resume=options.resume)
    columns = [str(rank) for rank in options.ranks]
    table = new_table("RMSE, and CPU seconds", ("set", "ratings", AUTO, *columns, "to the best", "seconds"))
    is_met = True
    for name in options.sets:
        data = _load(name, options.scale, options.seed)
        engines = (AUTO, *(f"{AUTO}:rank={rank}" for rank in options.ranks))
        plan = Plan(random_splits(data, 1, options.seed, SHARE), engines, options.seed)
        lines = [line for line, _ in measure(plan, store, done)]
        for line in lines:
            console.print(f"{name}: {line.summary()}; {line.note}", style="dim", markup=False)
        worse, longer = _beside_best(lines)
        is_met &= worse <= MOST_WORSE and longer <= MOST_LONGER
        cells = [f"{line.rmse:.4f} ({line.seconds:,.0f})" for line in lines]
        table.add_row(name, f"{lines[0].n_train:,}", *cells, f"{worse:.4f} x", f"{longer:.2f} x")
    console.print(table)
    console.print(f"goals: at most {MOST_WORSE} x the error of the best rank, in {MOST_LONGER} x its seconds")
    return 0 if is_met else 1


def _load(name: str, scale: float, seed: int) -> DataSet:
    if name in MADE:
        return MADE[name].draw(name, scale, seed)
    loaders: Mapping[str, Callable[[], DataSet]] = {"ml-latest-small": datasets.ml_latest_small}
    return datasets.thinned(loaders.get(name, datasets.ml_100k)(), scale, seed)


def _beside_best(lines: Sequence[Line]) -> tuple[float, float]:
    """Return the error of the first line and its seconds, as factors of those of the best of the others."""
    best = min(lines[1:], key=lambda line: line.rmse)
    return lines[0].rmse / best.rmse, lines[0].seconds / best.seconds
