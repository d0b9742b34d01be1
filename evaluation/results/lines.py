"""Lines of an evaluation, kept on disk as they are finished.

Invariant: a line is on disk before the next one is begun, and one that was torn by a kill counts as not
finished; so an evaluation that goes on never computes a finished line again.
"""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

NAN = float("nan")
Points = tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class Line:
    """One engine on one split. Figures are NaN where the engine lacks what is needed.

    `coverage`: share of the ratings inside their 90 % intervals; `deciles`: the same by tenths of the user's
    count, `decile_known` the mean counts; `std_deciles`, `decile_std`: by tenths of the predicted deviation;
    `reliability`, `curve`: see `evaluation.metrics.Figures`.
    `recall_20`, `ndcg_100` and the last four: see `RankingFigures` of `evaluation.offline.ranking.metrics`.
    `skipped`: why there are no figures; `failed`: it should have had some.
    """

    data: str
    split: str
    engine: str
    title: str
    n_train: int = 0
    n_test: int = 0
    rmse: float = NAN
    mae: float = NAN
    log_likelihood: float = NAN
    coverage: float = NAN
    recall_20: float = NAN
    ndcg_100: float = NAN
    seconds: float = NAN
    peak_mb: float = NAN
    note: str = ""
    skipped: str = ""
    failed: bool = False
    deciles: tuple[float, ...] = ()
    decile_known: tuple[float, ...] = ()
    reliability: tuple[float, ...] = ()
    curve: Points = ()
    # Later columns of the file come last: readers of older files count on the order.
    liked_ndcg_100: float = NAN
    graded_ndcg_10: float = NAN
    coverage_10: float = NAN
    novelty_10: float = NAN
    std_deciles: tuple[float, ...] = ()
    decile_std: tuple[float, ...] = ()

    def summary(self) -> str:
        """Return engine and main figures, or why there are none, in a line of text."""
        if self.skipped:
            return f"{self.title}: {'failed' if self.failed else 'skipped'}: {self.skipped}"
        figures = ((f"RMSE {self.rmse:.4f}", self.rmse), (f"NDCG@100 {self.ndcg_100:.4f}", self.ndcg_100))
        shown = ", ".join(text for text, value in figures if not math.isnan(value))
        return f"{self.title}: {shown} in {self.seconds:.1f} s"

    @classmethod
    def csv_columns(cls) -> tuple[str, ...]:
        """The fields that a row of a CSV file has."""
        left_out = {"decile_known", "decile_std", "reliability", "curve"}
        return tuple(entry.name for entry in fields(cls) if entry.name not in left_out)

    def csv_row(self) -> list[object]:
        """The values of `csv_columns`; deciles are ten numbers in one cell, NaN is an empty one."""
        row = {name: _plain(getattr(self, name)) for name in self.csv_columns()}
        for name in ("deciles", "std_deciles"):
            row[name] = " ".join(f"{share:.4f}" for share in getattr(self, name))
        return ["" if value is None else value for value in row.values()]


class LineStore:
    """The file `folder`/lines.jsonl: finished lines by their keys."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "lines.jsonl"

    def load(self) -> dict[str, Line]:
        """Return every whole line. A missing file is an empty one."""
        found: dict[str, Line] = {}
        if not self._path.is_file():
            return found
        for text in self._path.read_bytes().splitlines():
            try:
                document = json.loads(text)
                found[str(document["key"])] = _line(document["line"])
            except (ValueError, KeyError, TypeError):
                continue  # torn by a kill, or of another version
        return found

    def begin(self, *, resume: bool) -> dict[str, Line]:
        """Return the lines that are kept where an evaluation goes on; else forget all: a line that another
        version has measured must not stand beside those of this one.
        """
        if resume:
            return self.load()
        self._path.unlink(missing_ok=True)
        return {}

    def append(self, key: str, line: Line) -> None:
        """Keep one line; it is on disk when this returns."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        document = {name: _plain(value) for name, value in asdict(line).items()}
        # A line end first: a line that a kill has torn then stands alone.
        text = "\n" + json.dumps({"key": key, "line": document}, allow_nan=False) + "\n"
        with self._path.open("ab") as file:
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())


def _plain(value: Any) -> Any:
    # JSON has no NaN.
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _line(document: Mapping[str, Any]) -> Line:
    values: dict[str, Any] = {name: NAN if value is None else value for name, value in document.items()}
    for name in ("deciles", "decile_known", "reliability", "std_deciles", "decile_std"):
        values[name] = tuple(values[name])
    # JSON has lists only.
    values["curve"] = tuple((x, y) for x, y in values["curve"])
    return Line(**values)
