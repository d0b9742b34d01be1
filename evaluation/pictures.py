"""Learning curves and calibration as pictures.

Invariant: the same results give the same bytes. The pictures need matplotlib, which is imported only here and
only when one is drawn.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from evaluation.metrics import NOMINAL
from evaluation.report import deciles, groups
from evaluation.results.course import EvaluationReport, Summary
from evaluation.results.lines import Line

R = TypeVar("R")

CURVE_STEPS = 100  # a point of a curve is the mean of so many steps: its error is a tenth of a step's own


def drawn(draw: Callable[[R, Path], list[Path]], results: R, folder: Path) -> list[str]:
    """Draw with `draw_course` or `draw_engines`; return a line for each picture, or why there is none."""
    try:
        return [f"wrote {path}" for path in draw(results, folder)]
    except ModuleNotFoundError:
        return ["no pictures, as matplotlib is not installed: pip install foldin[evaluate]"]


def draw_course(report: EvaluationReport, folder: Path) -> list[Path]:
    """Draw `curves.png`, a panel for each length of history, and `learning-curve.svg`, all lengths in one.

    Raises ModuleNotFoundError without matplotlib, OSError where the folder cannot be written.
    """
    lengths = list(dict.fromkeys(result.known for result in report.results))
    figure, panels = _new_figure(len(lengths), (1.5 + 5.0 * len(lengths), 4.5), sharey=True)
    for panel, known in zip(panels, lengths, strict=True):
        _along_steps(panel, report, known)
        panel.legend(fontsize="small")
    panels[0].set_ylabel(f"mean squared error, last {CURVE_STEPS} steps")
    figure.savefig(folder / "curves.png", dpi=120)

    figure, panels = _new_figure(2 if len(lengths) > 1 else 1, (9.5, 4.2), sharey=True)
    _along_steps(panels[-1], report, min(lengths))
    if len(lengths) > 1:
        _by_length(panels[0], report.summaries())
    panels[0].set_ylabel("mean squared error of held-out pairs")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize="small")
    return [folder / "curves.png", _save_svg(figure, folder / "learning-curve.svg")]


def draw_engines(lines: Sequence[Line], folder: Path) -> list[Path]:
    """Draw `learning-curve.svg` and `calibration.svg`, as far as the lines have what is shown there.

    Raises ModuleNotFoundError without matplotlib, OSError where the folder cannot be written.
    """
    written = []
    finished = [line for line in lines if not line.skipped]
    if any(line.curve for line in finished):
        written.append(_engines_curve(finished, folder / "learning-curve.svg"))
    if any(line.deciles for line in finished):
        written.append(_calibration(finished, folder / "calibration.svg"))
    return written


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
    panel.set_yscale("log")  # a random player and a model are a hundredfold apart


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


def _engines_curve(lines: Sequence[Line], path: Path) -> Path:
    figure, (panel,) = _new_figure(1)
    sequential = any(line.n_train == 0 for line in lines)
    for group in groups(line for line in lines if line.curve).values():
        # Folds differ in where their points lie: the first one stands for them.
        points = np.array(group[0].curve)
        x = points[:, 0] + (0 if sequential else 1)  # a logarithmic axis has no 0
        panel.plot(x, points[:, 1], marker="o", markersize=3, label=group[0].title)
    if not sequential:
        panel.set_xscale("log")
    panel.set_xlabel("ratings learned" if sequential else "ratings of the user in training, plus 1")
    panel.set_ylabel("RMSE")
    panel.set_title(f"{lines[0].data}, {lines[0].split}", fontsize="medium")
    panel.legend(fontsize="small")
    return _save_svg(figure, path)


def _calibration(lines: Sequence[Line], path: Path) -> Path:
    figure, (left, right) = _new_figure(2)
    # The band of two points on each side of 90 % in which coverage should be.
    left.axhspan(0.88, 0.92, color="0.9")
    left.axhline(0.9, color="0.6", linewidth=1)
    right.plot([0, 1], [0, 1], color="0.6", linewidth=1)
    for group in groups(line for line in lines if line.deciles).values():
        shares = deciles(group)
        left.plot(range(1, len(shares) + 1), shares, marker="o", markersize=3, label=group[0].title)
        reliability = np.mean([line.reliability for line in group], axis=0)
        right.plot(NOMINAL, reliability, marker="o", markersize=3, label=group[0].title)
    left.set_xlabel("tenth of the ratings, by the user's count")
    left.set_ylabel("share inside the 90 % interval")
    right.set_xlabel("central interval of a normal with the answer's std")
    right.set_ylabel("share inside")
    right.legend(fontsize="small")
    return _save_svg(figure, path)


def _new_figure(
    n_panels: int, size: tuple[float, float] | None = None, *, sharey: bool = False
) -> tuple[Any, Sequence[Any]]:
    """A figure with panels side by side, and the panels. `size`: inches."""
    # An extra that may not be installed: without it an evaluation has its tables all the same.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # Figure and canvas by themselves: pyplot would look for a display and keep every figure.
    figure = Figure(figsize=size or (1.0 + 5.2 * n_panels, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, n_panels, sharey=sharey, squeeze=False)[0]
    for panel in panels:
        panel.grid(visible=True, alpha=0.3)
    return figure, panels


def _save_svg(figure: Any, path: Path) -> Path:
    import matplotlib as mpl

    path.parent.mkdir(parents=True, exist_ok=True)
    # Without a salt the ids inside an SVG are new each time. Text as text: a tenth of the size, searchable.
    with mpl.rc_context({"svg.hashsalt": "foldin", "svg.fonttype": "none"}):
        figure.savefig(path, format="svg", metadata={"Date": None})
    return path
