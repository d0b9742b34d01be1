"""`foldin evaluate FILE`: splits a file of ratings, lets engines predict what they have not seen, compares.

Invariant: what is finished is on disk, and `--resume` with the same file, split and seed goes on after it.
"""

import argparse
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from evaluation.offline import splits
from evaluation.offline.data import DataSet, FileData, FileRules, read_files
from evaluation.offline.engines import AUTO, OPTIONS, find
from evaluation.offline.report import results_table
from evaluation.offline.results import Line, LineStore, write_csv
from evaluation.offline.running import Plan, measure
from evaluation.offline.splits import SPLITS, Split
from factors import Scale
from featurestore.settings import format_scale, parse_scale
from processes.errors import CannotStartError

TABLE_WIDTH = 160  # where nobody says how wide it may be, as in a log file
DEFAULT_ENGINES = (AUTO, "global-mean", "item-mean", "bias")
DEFAULT_OUT = Path("results/evaluate")
INTERRUPTED = 130


@dataclass(frozen=True, slots=True)
class EvaluateOptions:
    """What the person asked for. `test`: a second file with the ratings to ask for, instead of a split."""

    file: Path
    test: Path | None
    split: str
    folds: tuple[int, ...]
    repeats: int
    share: float
    k: int
    engines: tuple[str, ...]
    ranking: bool
    seed: int
    out: Path
    resume: bool
    rules: FileRules
    limit_s: float


def run_evaluate(options: EvaluateOptions, arguments: Sequence[str], console: Console | None = None) -> int:
    """Evaluate; the exit code: 1 where an engine failed. Raises CannotStartError. `arguments`: the command
    line, to say how to go on.
    """
    console = console or _console()
    read = _read(options, console)
    for remark in read.remarks:
        console.print(remark, style="yellow", markup=False, highlight=False)
    plan = Plan(
        _splits(options, read),
        options.engines,
        options.seed,
        ranking=options.ranking,
        limit_s=options.limit_s,
    )
    _introduce(read.data, plan, console)
    store = LineStore(options.out)
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        done = store.load() if options.resume else {}
        if not options.resume:
            store.clear()
    except OSError as exc:
        raise CannotStartError(
            f"{options.out} cannot be written ({exc.strerror}): give another --out"
        ) from exc
    lines: list[Line] = []
    try:
        for line in _shown(plan, store, done, console):
            lines.append(line)  # noqa: PERF402 - what was there before an interruption counts
    except KeyboardInterrupt:
        command = [
            "foldin",
            "evaluate",
            *arguments,
            *(() if "--resume" in arguments else ("--resume",)),
        ]
        console.print(f"stopped after {len(lines)} lines; go on with: {shlex.join(command)}", markup=False)
        return INTERRUPTED
    _report(lines, options, console)
    return 1 if any(line.failed for line in lines) else 0


def _console() -> Console:
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = TABLE_WIDTH
    return console


def _read(options: EvaluateOptions, console: Console) -> FileData:
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        tasks = {
            path: progress.add_task(f"reading {path}", total=1.0)
            for path in (options.file, options.test)
            if path
        }
        return read_files(
            options.file,
            options.test,
            options.rules,
            lambda path, share: progress.update(tasks[path], completed=share),
        )


def _splits(options: EvaluateOptions, read: FileData) -> list[Split]:
    data = read.data
    if options.test is not None:
        split = splits.given_test(data, read.n_first)
        if not split.test.any() or split.test.all():
            raise CannotStartError(
                f"{options.file} and {options.test} have no ratings of their own: give two different files"
            )
        return [split]
    match options.split:
        case "given-fold":
            return splits.given_folds(data, options.folds)
        case "leave-k-out":
            return [splits.leave_out(data, options.k, options.seed)]
        case "time":
            return [splits.by_time(data, options.share)]
        case "prequential":
            return [splits.in_time_order(data)]
        case _:
            return splits.random_splits(data, options.repeats, options.seed, options.share)


def _introduce(data: DataSet, plan: Plan, console: Console) -> None:
    n = len(data.ratings.value)
    density = n / (data.n_users * data.n_items)
    console.print(
        f"{data.name}: {n:,} ratings of {data.n_items:,} items by {data.n_users:,} users ({density:.2%} of "
        f"all pairs), on the scale {format_scale(data.scale)}",
        markup=False,
    )
    if any(split.sequential for split in plan.splits):
        console.print("each rating is predicted before it is learned", markup=False)


def _shown(plan: Plan, store: LineStore, done: dict[str, Line], console: Console) -> Iterator[Line]:
    """The lines, with a bar on a terminal and a printed line each elsewhere."""
    works = list(plan.works())
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(_what(*works[0]), total=len(works))
        for number, (line, known) in enumerate(measure(plan, store, done), start=1):
            console.print(_told(line, known=known), style="dim", markup=False, soft_wrap=True)
            description = _what(*works[number]) if number < len(works) else "done"
            progress.update(task, completed=number, description=description)
            yield line


def _what(split: Split, engine: str) -> str:
    return f"{split.name}, {engine}"


def _told(line: Line, *, known: bool) -> str:
    start = f"{line.split}, {line.title}: "
    if line.skipped:
        return start + ("failed: " if line.failed else "skipped: ") + line.skipped
    parts = []
    if line.rmse == line.rmse:
        parts.append(f"RMSE {line.rmse:.4f}")
    if line.ndcg_100 == line.ndcg_100:
        parts.append(f"NDCG@100 {line.ndcg_100:.4f}")
    return start + ", ".join(parts) + (" (kept from before)" if known else f" in {line.seconds:.1f} s")


def _report(lines: Sequence[Line], options: EvaluateOptions, console: Console) -> None:
    console.print(
        results_table(lines, f"{lines[0].data}, on ratings that were not seen, seed {options.seed}")
    )
    written = [write_csv(lines, options.out / "summary.csv")]
    try:
        from evaluation.offline.pictures import write_pictures

        written += write_pictures(lines, options.out)
    except ModuleNotFoundError:
        console.print("no pictures, as matplotlib is not installed: pip install foldin\\[evaluate]")
    for path in written:
        console.print(f"wrote {path}", markup=False, soft_wrap=True)


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def build_parser() -> argparse.ArgumentParser:
    """The command line of `foldin evaluate FILE`."""
    flags = _Parser(
        prog="foldin evaluate",
        usage="foldin evaluate FILE [options]",
        description="Compare engines on the ratings of a file: a part is learned, the rest is predicted. "
        "FILE is anything that `foldin import` reads: MovieLens, RecBole (.inter), CSV, Parquet, each also "
        "gzipped.",
        allow_abbrev=False,
    )
    flags.add_argument("file", type=Path, metavar="FILE")
    how = flags.add_mutually_exclusive_group()
    how.add_argument(
        "--split",
        choices=SPLITS,
        default="random",
        help="given-fold: fifths of the file in its order (u1 to u5 of MovieLens 100K); random; leave-k-out: "
        "K ratings of each user; time: the latest ratings; prequential: each rating in time order, before "
        "it is learned (default: %(default)s)",
    )
    how.add_argument("--test", type=Path, metavar="FILE", help="ask for the ratings of this second file")
    folds = range(1, splits.FOLDS + 1)
    flags.add_argument(
        "--folds", type=int, nargs="+", choices=folds, default=list(folds), metavar="J", help="(default: all)"
    )
    flags.add_argument(
        "--repeats", type=_whole(1, 100), default=1, metavar="N", help="random splits (default: 1)"
    )
    flags.add_argument(
        "--share",
        type=_share,
        default=0.2,
        metavar="P",
        help="asked for by random and time (default: %(default)s)",
    )
    flags.add_argument("-k", type=_whole(1, 1000), default=5, metavar="K", help="of leave-k-out (default: 5)")
    flags.add_argument(
        "--engines",
        type=_engines,
        default=DEFAULT_ENGINES,
        metavar="A,B",
        help=f"auto is Foldin as it is served, with options after colons ({OPTIONS}); besides global-mean, "
        "user-mean, item-mean, bias, popularity, implicit, neural, and where installed surprise-svd, "
        "surprise-svd++, surprise-knn, myfm, myfm-full, implicit-als (default: auto,global-mean,item-mean,"
        "bias)",
    )
    flags.add_argument("--ranking", action="store_true", help="also Recall@20 and NDCG@100")
    flags.add_argument("--seed", type=_whole(0, 2**31 - 1), default=1, help="(default: 1)")
    flags.add_argument("--out", type=Path, default=DEFAULT_OUT, metavar="DIR", help="(default: %(default)s)")
    flags.add_argument("--resume", action="store_true", help="keep what was finished in DIR before")
    flags.add_argument(
        "--scale", type=_scale, metavar="LOW:HIGH[:STEP]", help="(default: as the ratings have it)"
    )
    flags.add_argument("--format", choices=("auto", "movielens", "recbole", "csv", "parquet"), default="auto")
    flags.add_argument("--columns", metavar="user=..,item=..,rating=..,timestamp=..", help="as for import")
    flags.add_argument(
        "--on-bad", choices=("refuse", "skip"), default="refuse", help="(default: %(default)s)"
    )
    flags.add_argument(
        "--timeout-s", type=_whole(1, 86_400), default=3600, metavar="S", help="of one engine (default: 3600)"
    )
    return flags


def options_from(arguments: Sequence[str], columns: Callable[[str], Mapping[str, str]]) -> EvaluateOptions:
    """Parse. `columns` reads the columns as `foldin import` does. Exits with 2 where something is wrong."""
    flags = build_parser()
    args = flags.parse_args(arguments)
    try:
        named = columns(args.columns) if args.columns else None
    except argparse.ArgumentTypeError as exc:
        flags.error(f"argument --columns: {exc}")
    return EvaluateOptions(
        file=args.file,
        test=args.test,
        split=args.split,
        folds=tuple(dict.fromkeys(args.folds)),
        repeats=args.repeats,
        share=args.share,
        k=args.k,
        engines=tuple(args.engines),
        ranking=args.ranking,
        seed=args.seed,
        out=args.out,
        resume=args.resume,
        rules=FileRules(args.format, named, args.on_bad == "skip", args.scale),
        limit_s=float(args.timeout_s),
    )


def _engines(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names:
        raise argparse.ArgumentTypeError("must name at least one engine")
    for name in names:
        try:
            find(name)
        except ValueError as exc:
            raise argparse.ArgumentTypeError(str(exc)) from exc
    return names


def _whole(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not (text.isascii() and text.isdigit() and low <= int(text) <= high):
            raise argparse.ArgumentTypeError(f"must be a whole number from {low} to {high}, not {text!r}")
        return int(text)

    return parse


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = 0.0
    if not 0.0 < share < 1.0:
        raise argparse.ArgumentTypeError(f"must be a number between 0 and 1, not {text!r}")
    return share


def _scale(text: str) -> Scale:
    try:
        return parse_scale(text)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(str(exc)) from exc
