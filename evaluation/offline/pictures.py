"""Pictures of an evaluation: how the error falls with what is known, and whether intervals hold what they
say.

Invariant: the same lines give the same bytes. The pictures need matplotlib, which is imported only here and
only when one is drawn.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.offline.metrics import NOMINAL
from evaluation.offline.report import deciles, groups
from evaluation.offline.results import Line

SALT = "foldin"  # of the ids inside an SVG, which are otherwise new in each file


def write_pictures(lines: Sequence[Line], folder: Path) -> list[Path]:
    """`learning-curve.svg` and `calibration.svg` in `folder`, as far as there is something to show.

    Raises ModuleNotFoundError without matplotlib, OSError where the folder cannot be written.
    """
    written = []
    good = [line for line in lines if not line.skipped]
    if any(line.curve for line in good):
        written.append(_learning_curve(good, folder / "learning-curve.svg"))
    if any(line.deciles for line in good):
        written.append(_calibration(good, folder / "calibration.svg"))
    return written


def _learning_curve(lines: Sequence[Line], path: Path) -> Path:
    figure, (panel,) = new_figure(1)
    sequential = any(line.n_train == 0 for line in lines)
    for group in groups(line for line in lines if line.curve).values():
        # Folds differ in where their points lie: the first one stands for them, its line thin.
        points = np.array(group[0].curve)
        x = points[:, 0] + (0 if sequential else 1)
        panel.plot(x, points[:, 1], marker="o", markersize=3, label=group[0].title)
    if not sequential:
        panel.set_xscale("log")
    panel.set_xlabel("ratings learned" if sequential else "ratings of the user in training, plus 1")
    panel.set_ylabel("RMSE")
    panel.set_title(f"{lines[0].data}, {lines[0].split}", fontsize="medium")
    panel.legend(fontsize="small")
    return save(figure, path)


def _calibration(lines: Sequence[Line], path: Path) -> Path:
    figure, (left, right) = new_figure(2)
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
    return save(figure, path)


def new_figure(n_panels: int) -> tuple[Any, Sequence[Any]]:
    """A figure with panels side by side, and the panels. Raises ModuleNotFoundError without matplotlib."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.0 + 5.2 * n_panels, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, n_panels, squeeze=False)[0]
    for panel in panels:
        panel.grid(visible=True, alpha=0.3)
    return figure, panels


def save(figure: Any, path: Path) -> Path:
    """Write an SVG that is the same for the same figure."""
    import matplotlib as mpl

    path.parent.mkdir(parents=True, exist_ok=True)
    # Text as text: a tenth of the size, and it can be searched.
    with mpl.rc_context({"svg.hashsalt": SALT, "svg.fonttype": "none"}):
        figure.savefig(path, format="svg", metadata={"Date": None})
    return path
