"""The learning curves of an evaluation as pictures.

Invariant: the same results give the same bytes. The pictures need matplotlib, which is imported only here and
only when one is drawn.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from evaluation.course.results import EvaluationReport, Summary

CURVE_STEPS = 100  # each point of a curve along the steps is the mean of so many steps
SALT = "foldin"  # of the ids inside an SVG, which are otherwise new in each file


def draw_pictures(report: EvaluationReport, folder: Path) -> list[Path]:
    """Draw `curves.png`, a panel for each length of history, and `learning-curve.svg`, all lengths in one.

    Raises ModuleNotFoundError without matplotlib, OSError where the folder cannot be written. Returns the
    paths.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lengths = list(dict.fromkeys(result.known for result in report.results))

    def canvas(width: float, height: float, panels: int) -> tuple[Figure, Any]:
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        return figure, figure.subplots(1, panels, sharey=True, squeeze=False)[0]

    figure, panels = canvas(1.5 + 5.0 * len(lengths), 4.5, len(lengths))
    for panel, known in zip(panels, lengths, strict=True):
        _along_steps(panel, report, known)
        panel.legend(fontsize="small")
    panels[0].set_ylabel(f"mean squared error, last {CURVE_STEPS} steps")
    figure.savefig(folder / "curves.png", dpi=120)

    figure, panels = canvas(9.5, 4.2, 2 if len(lengths) > 1 else 1)
    _along_steps(panels[-1], report, min(lengths))
    if len(lengths) > 1:
        _by_length(panels[0], report.summaries())
    panels[0].set_ylabel("mean squared error of unseen pairs")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize="small")
    return [folder / "curves.png", _save_svg(figure, folder / "learning-curve.svg")]


def _along_steps(panel: Any, report: EvaluationReport, known: int) -> None:
    """Each point is the mean squared error of the `CURVE_STEPS` steps before it (of fewer at the end), over
    all runs.
    """
    for summary in report.summaries():
        if summary.known != known:
            continue
        errors = np.mean(
            [r.tally.squared_error for r in report.results if (r.known, r.player) == (known, summary.player)],
            axis=0,
        )
        steps, points = _means(errors)
        panel.plot(steps, points, marker="o", markersize=3, label=f"{summary.player} {summary.mse:.3f}")
    panel.set_title(f"{known:,} ratings known at the start", fontsize="medium")
    panel.set_xlabel("step")
    panel.set_yscale("log")
    panel.grid(visible=True, alpha=0.3)


def _means(errors: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    edges = np.arange(0, errors.size, CURVE_STEPS)
    points: npt.NDArray[np.float64] = np.add.reduceat(errors, edges) / np.diff(np.append(edges, errors.size))
    return np.append(edges[1:], errors.size), points


def _by_length(panel: Any, summaries: Sequence[Summary]) -> None:
    for player in dict.fromkeys(summary.player for summary in summaries):
        points = [(summary.known, summary.mse) for summary in summaries if summary.player == player]
        panel.plot(*zip(*points, strict=True), marker="o", markersize=4, label=player)
    panel.set_xscale("log")
    panel.set_yscale("log")
    lengths = sorted({summary.known for summary in summaries})
    panel.set_xticks(lengths, [f"{known:,}" for known in lengths])
    panel.minorticks_off()
    panel.set_xlabel("ratings known")
    panel.set_title("all steps of all runs", fontsize="medium")
    panel.grid(visible=True, alpha=0.3)


def _save_svg(figure: Any, path: Path) -> Path:
    import matplotlib as mpl

    # Text as text: a tenth of the size, and it can be searched.
    with mpl.rc_context({"svg.hashsalt": SALT, "svg.fonttype": "none"}):
        figure.savefig(path, format="svg", metadata={"Date": None})
    return path
