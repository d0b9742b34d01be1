"""Foldin's lists over those of the best tuned rival.

Invariant: a ratio is of means over the same splits, and its rival is the one that is best by that figure.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from rich.table import Table

from benchmarks.rivals.ranking import RANKING_PEERS
from evaluation.offline.engines import AUTO
from evaluation.report import COMPARED, figure, groups, mean, new_table
from evaluation.results.lines import Line

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
        if engine != AUTO:
            continue
        splits = [line.split for line in own]
        rivals = [ranked.get((data, kind, peer), []) for peer in RANKING_PEERS]
        rivals = [rival for rival in rivals if [line.split for line in rival] == splits]
        for name, title in COMPARED.items() if rivals else ():
            best = max(rivals, key=lambda rival: mean(rival, name))
            found = (mean(own, name), mean(best, name), best[0].title)
            yield Comparison(data, kind, title, *found, *GOALS.get((kind, name), (math.nan, math.nan)))


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
