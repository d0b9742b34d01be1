"""`foldin evaluate FILE`: splits a file of ratings, lets engines predict the held-out ones, compares.

Invariant: what is finished is on disk, and `--resume` with the same file, split and seed goes on after it.
"""

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn

from evaluation.offline import splits
from evaluation.offline.data import DataSet
from evaluation.offline.engines import AUTO, NO_MOMENT, OPTIONS, RANKING, find
from evaluation.offline.running import Plan, measure
from evaluation.offline.splits import SPLITS, Split, SplitName
from evaluation.pictures import draw_engines, drawn
from evaluation.question import SideName
from evaluation.report import engines_table, new_console, print_whole, ranking_table, write_lines
from evaluation.results.course import EvaluationReport
from evaluation.results.lines import Line, LineStore
from factors import Columns, Scale
from featurestore.settings import format_scale, parse_scale
from foldin.commands.running import INTERRUPTED
from foldin.files.dataset import FileData, FileRules, read_files, side_columns
from foldin.progress import Shown, bar
from foldin.settings import FILE_FORMATS, FORMAT_HELP, FrontDoorSettings, columns, no_document
from processes.errors import CannotStartError
from processes.settings import choice, left_over, load, setting, whole

DEFAULT_ENGINES = (AUTO, "global-mean", "item-mean", "bias")
WITH_ATTRIBUTES = f"{AUTO}:attributes"
WITH_CONTEXT = f"{AUTO}:context"
SHARE = 0.2  # as MovieLens holds out a fifth


def _engine(text: str) -> str:
    find(text)
    return text


def _share(text: str) -> float:
    with suppress(ValueError):
        if 0.0 < float(text) < 1.0:
            return float(text)
    raise ValueError(f"must be a number between 0 and 1, not {text!r}")


@dataclass(frozen=True, slots=True)
class EvaluateOptions:
    """Options of `foldin evaluate FILE`."""

    file: Path = setting(
        ...,
        "anything that `foldin import` reads; auto:context learns columns context.NAME",
        Path,
        flag="FILE",
    )
    # None and not "random": to tell a split that was named beside --test.
    split: SplitName | None = setting(
        None,
        "given-fold: fifths of the file in its order (u1 to u5 of MovieLens 100K); random; leave-k-out: K "
        "ratings of each user; leave-last-k: the latest K; time: the latest ratings; prequential: each "
        "rating in time order, before it is learned",
        choice(SPLITS),
        shown="`random`; with `--ranking` also time and leave-last-k",
        excludes="test",
    )
    test: Path | None = setting(
        None, "hold out the ratings of this second file, in place of a split", Path, metavar="FILE"
    )
    items: Path | None = setting(
        None,
        "what is said of the items: anything that `foldin import --items` reads; auto:attributes learns it",
        Path,
        metavar="FILE",
    )
    users: Path | None = setting(
        None,
        "what is said of the users: a column of ids, the others attributes, in the same formats",
        Path,
        metavar="FILE",
    )
    folds: tuple[int, ...] = setting(
        tuple(range(1, splits.FOLDS + 1)), "of given-fold", whole(1, splits.FOLDS), many=True
    )
    repeats: int | None = setting(
        None, "random splits", whole(1, 100), shown="`1`; `3` with `--ranking`", metavar="N"
    )
    share: float | None = setting(
        None, "held out by random and time", _share, shown="`0.2`; `0.1` with `--ranking`", metavar="SHARE"
    )
    k: int = setting(5, "K of leave-k-out and leave-last-k", whole(1, 1000), flag="-k")
    engines: tuple[str, ...] | None = setting(
        None,
        f"auto is Foldin as it is served, with options after colons ({OPTIONS}); besides global-mean, "
        "user-mean, item-mean, bias, popularity, implicit, neural",
        _engine,
        many=True,
        shown=f"`{','.join(DEFAULT_ENGINES)}`, and `{NO_MOMENT}`; with `--ranking` those that rank",
    )
    ranking: bool = setting(False, "compare lists: Recall, NDCG, coverage, novelty")
    seed: int = setting(1, "seed of splits and engines", whole(0))
    out: Path = setting(Path("results/evaluate"), "folder for table and pictures", Path, metavar="DIR")
    resume: bool = setting(False, "keep what was finished in the folder before")
    scale: Scale | None = setting(
        None,
        "LOW:HIGH[:STEP] of the ratings",
        parse_scale,
        shown="as the ratings have it",
        metavar="LOW:HIGH[:STEP]",
    )
    format: str = setting("auto", FORMAT_HELP, choice(FILE_FORMATS))
    columns: Mapping[str, str] | None = setting(
        None,
        "names of the columns, as for import",
        columns,
        shown="by their names",
        metavar="user=..,item=..,rating=..,timestamp=..",
    )
    on_bad: Literal["refuse", "skip"] = setting(
        "refuse", "bad rows: refuse the file, or skip them", choice(("refuse", "skip"))
    )
    timeout_s: int = setting(3600, "seconds of one engine", whole(1, 86_400))

    def problems(self) -> list[str]:
        """What is contradictory in these options, one sentence each."""
        found = []
        if self.engines == ():
            found.append("--engines must name at least one engine")
        if not self.folds:
            found.append("--folds must name at least one fold")
        return found


def run_evaluate(argv: Sequence[str], settings: FrontDoorSettings) -> int:
    """Run `foldin evaluate`, with a file or without; return the exit code. Raises CannotStartError."""
    from evaluation.course.settings import EvaluationSettings

    if has_file(left_over(EvaluateOptions, argv), left_over(EvaluationSettings, argv)):
        return evaluate_file(argv, settings.emit)
    from evaluation.course.protocol import Moment
    from evaluation.course.protocol import main as evaluate_in_environment
    from evaluation.players.model import model_players

    told, reasons = list[EvaluationReport](), list[str]()
    with Shown("Playing, in steps") as shown:

        def move(moment: Moment) -> None:
            shown.done((moment.game - 1) * moment.steps + moment.step, moment.games * moment.steps)

        players, variables = model_players(), settings.inherited
        code = evaluate_in_environment(argv, players, variables, told.append, move, failed=reasons.append)
    for report in told:
        summaries = [asdict(summary) for summary in report.summaries()]
        settings.emit({"seed": report.seed, "steps": report.steps, "summaries": summaries})
    if not told:
        code = code or INTERRUPTED
        settings.emit({"error": (reasons or ["interrupted"])[0], "exit_code": code})
    return code


def has_file(of_file: Sequence[str], of_course: Sequence[str]) -> bool:
    """Whether a line is of the form with FILE, by what the flags of either form leave over of it.

    The value of a flag that only the other form knows looks like a name, so both must leave one; else the
    form counts that knows more of the flags.
    """
    names, unknown = [], []
    for rest in (of_file, of_course):
        unknown.append(sum(each.startswith("-") for each in rest))
        names.append(len(rest) > unknown[-1])
    return all(names) or unknown[0] < unknown[1]


def evaluate_file(argv: Sequence[str], emit: Callable[[object], None] = no_document) -> int:
    """Run `foldin evaluate FILE`; return the exit code: 1 where an engine failed. Raises CannotStartError."""
    about = "Compare engines on the ratings of a file: a part is learned, the rest is predicted."
    options = load(EvaluateOptions, argv, {}, command="foldin evaluate", about=about)
    console = new_console()
    read = _described(options, _read(options))
    for remark in read.remarks:
        console.print(remark, style="yellow", markup=False)
    default: tuple[str, ...] = RANKING if options.ranking else DEFAULT_ENGINES
    if read.data.attributes:
        default = (WITH_ATTRIBUTES, *default)
    if read.data.context_kinds and not options.ranking:
        default = (WITH_CONTEXT, *default)
    splits = _splits(options, read)
    if not options.ranking and not splits[0].sequential and np.isfinite(read.data.ratings.time).any():
        default = (*default, NO_MOMENT)
    # An engine or fold that is named twice is run once.
    engines = tuple(dict.fromkeys(options.engines or default))
    plan = Plan(splits, engines, options.seed, ranking=options.ranking, limit_s=options.timeout_s)
    _introduce(read.data, plan, console)
    store = LineStore(options.out)
    done = _finished_before(store, options)
    lines: list[Line] = []
    try:
        for line in _shown(plan, store, done, console):
            lines.append(line)
            emit(asdict(line))
    except KeyboardInterrupt:
        command = ["foldin", "evaluate", *argv, *(() if "--resume" in argv else ("--resume",))]
        console.print(f"stopped after {len(lines)} lines; go on with: {shlex.join(command)}", markup=False)
        emit({"error": "interrupted", "exit_code": INTERRUPTED})
        return INTERRUPTED
    _report(lines, options, console)
    return 1 if any(line.failed for line in lines) else 0


def _read(options: EvaluateOptions) -> FileData:
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with bar(*columns) as progress:
        tasks = {
            path: progress.add_task(f"reading {path}", total=1.0)
            for path in (options.file, options.test)
            if path
        }
        return read_files(
            options.file,
            options.test,
            FileRules(options.format, options.columns, options.on_bad == "skip", options.scale),
            lambda path, share: progress.update(tasks[path], completed=share),
        )


def _described(options: EvaluateOptions, read: FileData) -> FileData:
    """Return what was read with the attributes of its items and users, where a file says any."""
    attributes: dict[SideName, Columns] = {}
    remarks = [*read.remarks]
    files: tuple[tuple[SideName, Path | None], ...] = ("item", options.items), ("user", options.users)
    for side, path in files:
        if path is None:
            continue
        found, n = side_columns(path, side, read.ids[side]), len(read.ids[side])
        remarks += found.remarks
        if found.described < n:
            remarks.append(f"{path} describes {found.described:,} of {n:,} {side}s")
        if found.columns is None:
            categories = " or categories" if side == "item" else ""
            raise CannotStartError(
                f"{path} says nothing that tells {side}s apart: give a file with attributes{categories} of "
                f"{side}s of the ratings"
            )
        attributes[side] = found.columns
    return replace(read, data=replace(read.data, attributes=attributes), remarks=tuple(remarks))


def _splits(options: EvaluateOptions, read: FileData) -> list[Split]:
    data = read.data
    if options.test is not None:
        split = splits.given_test(data, read.n_first)
        if not split.test.any() or split.test.all():
            raise CannotStartError(
                f"{options.file} and {options.test} have no ratings of their own: give two different files"
            )
        return [split]
    share = options.share or (splits.LISTS_SHARE if options.ranking else SHARE)
    repeats = options.repeats or (splits.LISTS_REPEATS if options.ranking else 1)
    match options.split:
        case "given-fold":
            found = splits.given_folds(data, tuple(dict.fromkeys(options.folds)))
        case "leave-k-out":
            found = [splits.leave_out(data, options.k, options.seed)]
        case "leave-last-k":
            found = [splits.leave_last(data, options.k)]
        case "time":
            found = [splits.by_time(data, share)]
        case "prequential":
            found = [splits.in_time_order(data)]
        case None if options.ranking:
            found = splits.list_protocols(data, repeats, share, options.k, options.seed)
        case _:
            found = splits.random_splits(data, repeats, options.seed, share)
    return found


def _finished_before(store: LineStore, options: EvaluateOptions) -> dict[str, Line]:
    try:
        # Tried before the first engine runs: it may take an hour.
        options.out.mkdir(parents=True, exist_ok=True)
        return store.begin(resume=options.resume)
    except OSError as exc:
        raise CannotStartError(
            f"{options.out} cannot be written ({exc.strerror}): give another --out"
        ) from exc


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
    """Yield the lines, each printed, with a bar on a terminal."""
    works = list(plan.works())
    with Shown(_label(*works[0])) as shown:
        shown.done(0, len(works))
        for number, (line, known) in enumerate(measure(plan, store, done), start=1):
            text = f"{line.split}, {line.summary()}" + (" (kept from before)" if known else "")
            console.print(text, style="dim", markup=False, soft_wrap=True)
            # The bar names the engine that runs now, the line above it the one that has finished.
            shown.done(number, len(works), _label(*works[number]) if number < len(works) else "done")
            yield line


def _label(split: Split, engine: str) -> str:
    return f"{split.name}, {engine}"


def _report(lines: Sequence[Line], options: EvaluateOptions, console: Console) -> None:
    title = f"{lines[0].data}, on held-out ratings, seed {options.seed}"
    if options.ranking:
        print_whole(console, ranking_table(lines, title))
    else:
        print_whole(console, engines_table(lines, title))
    written = f"wrote {write_lines(lines, options.out / 'summary.csv')}"
    for text in (written, *drawn(draw_engines, lines, options.out)):
        console.print(text, markup=False, soft_wrap=True)
