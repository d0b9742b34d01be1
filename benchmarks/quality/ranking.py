"""How good the lists are, beside those of tuned rivals, on held-out ratings of three data sets.

Invariant: as in `benchmarks.accuracy`: no test rating reaches an engine, every engine has one configuration
for all data sets or is tuned on training ratings, and the same command gives the same figures.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.data.datasets import load
from benchmarks.harness.command import Options, read
from benchmarks.harness.progress import going_on
from benchmarks.harness.recorded import DOCS, Origin, has_output, narrowed, origin, write_output, write_rows
from benchmarks.harness.report import Row, Target
from benchmarks.quality.comparison import Comparison, compare, comparison_table
from benchmarks.rivals.engines import RIVALS, TARGET, title
from benchmarks.rivals.ranking import RANKING_PEERS
from evaluation.offline.engines import RANKING
from evaluation.offline.running import Plan, measure
from evaluation.offline.splits import LISTS_REPEATS, LISTS_SHARE, Split, list_protocols
from evaluation.report import new_console, ranking_table, write_lines
from evaluation.results.lines import Line, LineStore
from processes.settings import choice, program, setting, whole

NAME = "ranking"
SETS = ("ml-100k", "ml-latest-small", "lectures")
# What `foldin evaluate --ranking` compares, its rivals, and the trainer's engine for stores of choices.
BENCH_ENGINES = (*RANKING, *RANKING_PEERS, "implicit")
LAST = 5  # of each user, as the goals have it
# Columns that a document does not have: settings, and figures that no goal is about.
NOT_RECORDED = {"data", "liked NDCG@100", "novelty@10", "RMSE", "note"}


def _engine(text: str) -> str:
    title(text)
    return text


@dataclass(frozen=True, slots=True)
class Choice(Options):
    """What is to be run."""

    sets: tuple[str, ...] = setting(SETS, "data sets", choice((*SETS, "synthetic")), many=True)
    engines: tuple[str, ...] = setting(BENCH_ENGINES, "engines to run", _engine, many=True)
    repeats: int = setting(LISTS_REPEATS, "random splits", whole(1, 100))
    resume: bool = setting(False, "keep the lines that were finished before")
    peers: str = setting(sys.executable, "interpreter that has the peers", program, shown="this one")

    def problems(self) -> list[str]:
        """What is contradictory in these options, one sentence each."""
        whole_sets = not self.resume and (self.engines, self.repeats) == (BENCH_ENGINES, LISTS_REPEATS)
        refused = "--record goes with whole sets, not with --resume, --engines or --repeats"
        return [*Options.problems(self), *([refused] if self.record and not whole_sets else [])]


def splits_of(name: str, options: Choice) -> list[Split]:
    """Return the splits of a data set. Raises `BenchmarkError` where it cannot be had."""
    data = load(name, scale=options.scale, seed=options.seed)
    return list_protocols(data, options.repeats, LISTS_SHARE, LAST, options.seed)


def _record(lines: Sequence[Line], sets: Sequence[str], of: Origin) -> None:
    path = DOCS / "accuracy.md"
    write_rows(path, NAME, goals(list(compare(lines))), of, whole=False)
    for name in sets:
        if has_output(path, f"{NAME} {name}"):
            of_set = [line for line in lines if line.data == name and (not line.skipped or line.failed)]
            table = narrowed(ranking_table(of_set, f"{name}: lists"), NOT_RECORDED)
            write_output(path, f"{NAME} {name}", [table], of)


def goals(found: Sequence[Comparison]) -> list[Row]:
    """Return the comparisons that have a goal as rows."""
    return [
        Row(
            f"{one.data}, {one.split}: {one.figure} / that of the best tuned rival",
            "x",
            (round(one.ratio, 3),),
            Target(one.goal, one.floor),
            # The best rival may be another one next time: it is no part of the name.
            detail=f"{one.own:.4f} against {one.best:.4f} of {one.rival}",
        )
        for one in found
        if one.verdict
    ]


def main(argv: Sequence[str]) -> int:
    """Print the tables; return 0, or 1 where an engine failed."""
    options = read(Choice, NAME, __doc__, argv)
    console, of = new_console(), origin()
    store = LineStore(options.output / NAME)
    done = store.begin(resume=options.resume)
    lines: list[Line] = []
    with going_on(NAME):
        for name in options.sets:
            plan = Plan(
                splits_of(name, options),
                options.engines,
                options.seed,
                ranking=True,
                python=options.peers,
                more=RIVALS,
                target=TARGET,
            )
            for line, _ in measure(plan, store, done):
                lines.append(line)
                console.print(f"{line.data} {line.split}, {line.summary()}", style="dim", markup=False)
    for name in options.sets:
        console.print(ranking_table([line for line in lines if line.data == name], f"{name}: lists"))
    console.print(comparison_table(list(compare(lines)), verdicts=options.scale == 1))
    if options.record:
        _record(lines, options.sets, of)
    console.print(f"written to {write_lines(lines, options.output / f'{NAME}.csv')}")
    return 1 if any(line.failed for line in lines) else 0
