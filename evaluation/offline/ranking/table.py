"""The ranking table: engines by the figures of their lists."""

import math
from collections.abc import Sequence

import numpy as np
from rich.table import Table

from evaluation.report import figure, groups, mean, new_table
from evaluation.results.lines import Line

SERVED = "auto"
EXPECTED_RATING, RELEVANCE = "auto:order=rating", "auto:order=relevance"
# What one table compares, Foldin first.
ENGINES = (SERVED, RELEVANCE, EXPECTED_RATING, "popularity")
COMPARED = {
    "recall_20": "Recall@20",
    "ndcg_100": "NDCG@100",
    "liked_ndcg_100": "liked NDCG@100",
    "graded_ndcg_10": "graded NDCG@10",
}


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


def _with_error(lines: Sequence[Line], name: str) -> str:
    values = [getattr(line, name) for line in lines]
    text = figure(mean(lines, name), ".4f")
    if len(values) < 2 or not text:
        return text
    return f"{text} ± {np.std(values, ddof=1) / math.sqrt(len(values)):.4f}"
