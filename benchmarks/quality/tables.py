"""The tables of the accuracy benchmark.

Invariant: each figure was measured in this run, or kept of an earlier one with the same settings.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.harness.recorded import narrowed
from benchmarks.harness.report import Row, number
from benchmarks.quality.goals import PUBLISHED, Found, goals
from benchmarks.quality.new_items import RANDOM, NewItems
from benchmarks.quality.over_http import ENGINE as DEPLOYED
from benchmarks.quality.shills import SHARE, Shift
from benchmarks.rivals.engines import title
from evaluation.offline.engines import AUTO
from evaluation.report import deciles, engines_table, figure, groups, new_table
from evaluation.results.course import Summary
from evaluation.results.lines import Line

_NAMES = {
    "ml-100k": "ml-100k",
    "prequential": "ml-100k in the order of time",
    "ablation": "ablation, ml-100k u1",
}
# What documents do not have of a table of engines.
_NOTES = {"note"}


def show(found: Found, console: Console, *, full: bool) -> None:
    """Print every table; the goals are for `full` sizes alone."""
    for section in found.sections():
        for table in tables_of(found, section):
            console.print(table)
    for about, engine, error, source in PUBLISHED:
        console.print(
            f"published for {about}: {error:.4f}, {engine} ({source})", style="dim", highlight=False
        )
    if full:
        console.print(goal_table(goals(found)))


def tables_of(found: Found, section: str) -> Iterator[Table]:
    """Yield the tables of a section."""
    match section:
        case "environment":
            yield play_table(found.played)
        case "cold":
            yield cold_table(found)
        case "new-items":
            yield new_items_table(found.new_items)
        case "shills":
            yield shift_table(found.shifts)
        case _:
            lines = found.lines[section]
            yield from _engine_tables(section, lines)
            if section != "ablation" and (by_decile := decile_table(lines)).row_count:
                yield by_decile


def recorded_tables(found: Found, section: str) -> Iterator[Table]:
    """Yield the tables of a section as a document has them: without settings, engines that were skipped, and
    shares by decile, which the rows of goals have; of attacks the worst.
    """
    if section == "shills":
        yield worst_shift_table(found.shifts)
    elif section in found.lines:
        of = found.lines[section]
        lines = [line for line in of if not line.skipped or line.failed] or of
        yield from (narrowed(table, _NOTES) for table in _engine_tables(section, lines))
    else:
        yield from tables_of(found, section)


def _engine_tables(section: str, lines: Sequence[Line]) -> Iterator[Table]:
    name = _NAMES.get(section, lines[0].data)
    # Slow peers run on the first fold alone: their figures stand beside others of that fold, not of five.
    first = [line for line in lines if line.split == "u1"]
    shown = lines
    if section == "ml-100k" and len(first) < len(lines):
        yield engines_table(first, f"{name} u1")
        several = {engine for (_, _, engine), group in groups(lines).items() if len(group) > 1}
        shown = [line for line in lines if line.engine in several]
    yield engines_table(shown, f"{name}: ratings that were not seen")


def play_table(played: Sequence[Summary]) -> Table:
    """Return the mean squared error of each player, one column for each length of the known history."""
    lengths = sorted({one.known for one in played})
    worlds = max(len(one.run_mse) for one in played)
    shown = new_table(
        f"rating environment, mean squared error of unseen pairs, mean of {worlds} worlds",
        ("player", *(f"{known:,} known" for known in lengths), "in 90 %", "missing", "s to learn"),
        left=("player",),
    )
    for player in dict.fromkeys(one.player for one in played):
        by_length = {one.known: one for one in played if one.player == player}
        # Coverage and seconds of the longest history alone: that is the course's own.
        longest = by_length[max(by_length)]
        shown.add_row(
            player,
            *(f"{by_length[known].mse:.4f}" if known in by_length else "" for known in lengths),
            figure(longest.coverage, ".1%"),
            str(sum(one.missing for one in by_length.values())),
            f"{longest.prepare_s:.1f}",
        )
    return shown


def decile_table(lines: Sequence[Line]) -> Table:
    """Return the coverage of Foldin's 90 % intervals in each tenth of the ratings, by the user's count and by
    the predicted deviation.
    """
    shown = new_table(
        "share of the ratings inside Foldin's 90 % intervals, by tenths",
        ("data", "split", *map(str, range(1, 11))),
        left=("data", "split"),
    )
    for (data, part, engine), group in groups(lines).items():
        good = [line for line in group if not line.skipped]
        if engine not in (AUTO, DEPLOYED):
            continue
        for shares_of, mean_of, label, form in (
            ("deciles", "decile_known", "user's count", ".0f"),
            ("std_deciles", "decile_std", "deviation", ".3f"),
        ):
            shares, means = deciles(good, shares_of), deciles(good, mean_of)
            if shares:
                name = f"{data}, {engine}" if engine == DEPLOYED else data
                shown.add_row(name, part, *(f"{share:.1%}" for share in shares))
                shown.add_row("", label, *(format(each, form) for each in means), style="dim")
    return shown


def cold_table(found: Found) -> Table:
    """Return the RMSE by the number of ratings known of a new user or item."""
    shown = new_table(
        f"cold start, {found.cold[0].data}: RMSE by the number of ratings known of the new ones",
        ("new", "engine", *map(str, found.cold[0].counts), "in 90 %"),
        left=("new", "engine"),
    )
    for curve in found.cold:
        covered = [share for share in curve.coverage if np.isfinite(share)]
        coverage = f"{min(covered):.1%} to {max(covered):.1%}" if covered else ""
        errors = (f"{error:.4f}" for error in curve.rmse)
        shown.add_row(f"{curve.side}s", title(curve.engine), *errors, coverage)
    return shown


def new_items_table(lines: Sequence[NewItems]) -> Table:
    """Return how items without any rating are rated, and ranked among themselves."""
    first = lines[0]
    shown = new_table(
        f"{first.data}: {first.n_items} items without any rating, {first.n_test:,} ratings of them",
        ("engine", "RMSE", "NDCG@10 among them"),
        left=("engine",),
    )
    for one in lines:
        name = one.engine if one.engine == RANDOM else title(one.engine)
        shown.add_row(name, figure(one.rmse, ".4f"), figure(one.ndcg_10, ".4f"))
    return shown


def shift_table(shifts: Sequence[Shift]) -> Table:
    """Return by how much each attack moved the predictions of its target."""
    shown = new_table(
        f"{shifts[0].data}: what {shifts[0].shills} accounts, {SHARE:.0%} of all, add to an item",
        (
            *("more popular", "ratings", "besides", "mean rating", "folded in", "fitted"),
            *("RMSE before", "after"),
        ),
        left=("more popular", "besides"),
    )
    for one in shifts:
        shown.add_row(
            f"{one.popularity:.0%}",
            str(one.n_ratings),
            one.attack,
            *(f"{moved:+.3f}" for moved in (one.plain_mean, one.online, one.fitted)),
            *(f"{error:.4f}" for error in (one.rmse_before, one.rmse)),
        )
    return shown


def worst_shift_table(shifts: Sequence[Shift]) -> Table:
    """Return how far the worst of the attacks moved the predictions of each target, and which one it was."""
    left = ("folded in", "fitted")
    shown = new_table(
        f"{shifts[0].data}: what {shifts[0].shills} accounts, {SHARE:.0%} of all, add to an item at most",
        ("more popular", "ratings", "mean rating", *left),
        left=left,
    )
    for popularity in dict.fromkeys(one.popularity for one in shifts):
        of = [one for one in shifts if one.popularity == popularity]
        online = max(of, key=lambda one: one.online)
        fitted = max(of, key=lambda one: one.fitted)
        shown.add_row(
            f"{popularity:.0%}",
            str(of[0].n_ratings),
            f"{of[0].plain_mean:+.3f}",
            f"{online.online:+.3f} ({online.attack})",
            f"{fitted.fitted:+.3f} ({fitted.attack})",
        )
    return shown


def goal_table(rows: Iterable[Row]) -> Table:
    """Return what was to be reached, and whether it was."""
    left = ("work", "figure", "goal", "floor", "verdict", "detail")
    shown = new_table("goals", left, left=left)
    for row in rows:
        assert row.target is not None
        shown.add_row(
            row.work,
            f"{number(row.median)} {row.unit}".strip(),
            *row.target.cells(),
            row.verdict,
            row.detail,
        )
    return shown
