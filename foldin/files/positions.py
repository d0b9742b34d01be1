"""Keeps how far the import of a file has come, so that it can go on there.

Invariant: a position is never beyond what was written. A lost one costs time, never ratings.
"""

import contextlib
import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Position:
    """`line` of the file as it was (size, time of change), in a target that may have begun a new history
    (`epoch`).
    """

    size: int
    modified_ns: int
    epoch: int
    line: int
    ratings: int


class PositionFile:
    """The position of one file in one target. Where it cannot be kept, an import goes on without."""

    def __init__(self, folder: Path, path: Path, target: str) -> None:
        # A hash: paths and targets hold characters that a file name may not.
        name = hashlib.sha256(f"{path.resolve()}\n{target}".encode()).hexdigest()[:32]
        self._path = folder / "imports" / f"{name}.json"

    def load(self) -> Position | None:
        """Return the position that was kept, or None."""
        try:
            return Position(**json.loads(self._path.read_text("utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def save(self, position: Position) -> bool:
        """Keep a position; return False where that is impossible."""
        # Written beside and renamed: a kill leaves the old one whole.
        beside = self._path.with_suffix(".new")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            beside.write_text(json.dumps(asdict(position)), "utf-8")
            beside.replace(self._path)
        except OSError:
            return False
        return True

    def remove(self) -> None:
        """Forget the position: the import is complete."""
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)
