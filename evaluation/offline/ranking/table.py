"""The ranking table: engines by the figures of their lists, and Foldin's over those of the best tuned rival.

Invariant: a ratio is of means over the same splits, and its rival is the one that is best by that figure.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from rich.table import Table

from evaluation.offline.ranking.peers import RANKING_PEERS
from evaluation.report import figure, groups, mean, new_table
from evaluation.results.lines import Line

SERVED = "auto"
EXPECTED_RATING, RELEVANCE = "auto:order=rating", "auto:order=relevance"
# What one table compares, Foldin first.
ENGINES = (SERVED, RELEVANCE, EXPECTED_RATING, "popularity", *RANKING_PEERS)
COMPARED = {
    "recall_20": "Recall@20",
    "ndcg_100": "NDCG@100",
    "liked_ndcg_100": "liked NDCG@100",
    "graded_ndcg_10": "graded NDCG@10",
}
# By kind of split and figure: goal and floor of Foldin's figure over that of the best tuned rival.
GOALS = {
    ("random", "ndcg_100"): (1.01, 1.00),
    ("random", "recall_20"): (1.00, 0.98),
    ("random", "graded_ndcg_10"): (1.05, 1.02),
    ("last", "ndcg_100"): (1.15, 1.05),
}
Verdict = Literal["met", "floor", "missed", ""]


@dataclass(frozen=True, slots=True)
class Comparison:
    """One figure, means over splits: `own` of what Foldin serves, `best` of `rival`. `goal`, `floor`: of the
    ratio, NaN for none.
    """

    data: str
    split: str
    figure: str
    own: float
    best: float
    rival: str
    goal: float = math.nan
    floor: float = math.nan

    @property
    def ratio(self) -> float:
        """Foldin's figure over the rival's."""
        return self.own / self.best if self.best else math.nan

    @property
    def verdict(self) -> Verdict:
        """`met`, `floor` (between floor and goal) or `missed`; empty without a goal."""
        if math.isnan(self.goal):
            return ""
        # By the ratio that the table shows.
        shown = round(self.ratio, 3)
        return "met" if shown >= self.goal else "floor" if shown >= self.floor else "missed"


def compare(lines: Sequence[Line]) -> Iterator[Comparison]:
    """Yield a comparison for each data set, kind of split and figure that Foldin and a rival have."""
    ranked = groups(line for line in lines if not math.isnan(line.ndcg_100))
    for (data, kind, engine), own in ranked.items():
        if engine != SERVED:
            continue
        splits = [line.split for line in own]
        rivals = [ranked.get((data, kind, peer), []) for peer in RANKING_PEERS]
        rivals = [rival for rival in rivals if [line.split for line in rival] == splits]
        for name, title in COMPARED.items() if rivals else ():
            best = max(rivals, key=lambda rival: mean(rival, name))
            found = (mean(own, name), mean(best, name), best[0].title)
            yield Comparison(data, kind, title, *found, *GOALS.get((kind, name), (math.nan, math.nan)))


def ranking_table(lines: Sequence[Line], title: str) -> Table:
    """Return a row a data set, kind of split and engine: means over the splits, with standard errors."""
    headings = (*COMPARED.values(), "coverage@10", "novelty@10", "RMSE", "s")
    left = ("data", "split", "engine", "note")
    shown = new_table(title, (*left[:3], *headings, "note"), left=left)
    for (data, kind, _), group in groups(lines).items():
        good = [line for line in group if not line.skipped]
        name = f"{kind} x {len(good)}" if len(good) > 1 else group[0].split
        if not good:
            word = "failed" if group[0].failed else "skipped"
            shown.add_row(data, name, group[0].title, *[""] * len(headings), f"{word}: {group[0].skipped}")
            continue
        cells = [_with_error(good, figure_name) for figure_name in COMPARED]
        cells += [figure(mean(good, "coverage_10"), ".1%"), figure(mean(good, "novelty_10"), ".2f")]
        cells += [figure(mean(good, "rmse"), ".4f"), figure(mean(good, "seconds"), ".1f")]
        shown.add_row(data, name, good[0].title, *cells, good[0].note)
    return shown


def comparison_table(found: Sequence[Comparison], *, verdicts: bool = True) -> Table:
    """Return a row a comparison. `verdicts`: False where the goals are for other sizes."""
    left = ("data", "split", "figure", "best tuned rival", "verdict")
    headings = (*left[:3], "Foldin", "rival", "ratio", "goal", "floor", *left[3:])
    shown = new_table("Foldin over the best tuned rival", headings, left=left)
    for one in found:
        numbers = (f"{one.own:.4f}", f"{one.best:.4f}", f"{one.ratio:.3f}")
        goals = (figure(one.goal, ".2f"), figure(one.floor, ".2f"))
        shown.add_row(
            one.data, one.split, one.figure, *numbers, *goals, one.rival, one.verdict if verdicts else ""
        )
    return shown


def _with_error(lines: Sequence[Line], name: str) -> str:
    values = [getattr(line, name) for line in lines]
    text = figure(mean(lines, name), ".4f")
    if len(values) < 2 or not text:
        return text
    return f"{text} ± {np.std(values, ddof=1) / math.sqrt(len(values)):.4f}"
