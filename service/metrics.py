"""What a worker counts, and the sum over the workers of a host.

Invariant: a counter never falls, whoever is restarted.

Counting is adding to plain numbers, for a whole turn's requests at once on the hot path. Each worker leaves a
snapshot in a file a second; the one that is scraped adds the others' snapshots to its own. A worker that
takes a dead one's place goes on from its last snapshot.
"""

import contextlib
import time
from bisect import bisect_left
from collections.abc import Iterable
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

LATENCY_BOUNDS = (
    *(0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.025, 0.05),
    *(0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
)
LOOKUP_BOUNDS = (0.0001, 0.0002, 0.0003, 0.0005, 0.00075, 0.001, 0.0015, 0.0025, 0.005, 0.01, 0.05, 0.1, 1.0)
BATCH_BOUNDS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
# Shares of the width of the scale, squared, so that the same bounds serve every scale.
ERROR_SHARES = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.75, 1.0)
# Rates on the page and the newest error are over about this long.
RECENT_S = 60.0


class Histogram(msgspec.Struct):
    """Counts by upper bound (the last is unbounded) and the sum of what was observed."""

    bounds: tuple[float, ...]
    counts: list[int]
    sum: float = 0.0

    @classmethod
    def empty(cls, bounds: tuple[float, ...]) -> "Histogram":
        """Nothing observed yet."""
        return cls(bounds, [0] * (len(bounds) + 1))

    def observe(self, value: float, times: int = 1) -> None:
        """Count `value`, `times` times."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.sum += value * times

    def observe_all(self, values: npt.NDArray[np.float64]) -> None:
        """Count each of `values` (n,)."""
        places = np.searchsorted(self.bounds, values)
        for place, count in enumerate(np.bincount(places, minlength=len(self.counts)).tolist()):
            self.counts[place] += count
        self.sum += float(values.sum())

    def add(self, other: "Histogram") -> None:
        """Add the counts of another with the same bounds; one with other bounds (of an older version) is left
        out.
        """
        if other.bounds == self.bounds:
            self.counts = [mine + theirs for mine, theirs in zip(self.counts, other.counts, strict=True)]
            self.sum += other.sum

    @property
    def count(self) -> int:
        """How many values were observed."""
        return sum(self.counts)


class Snapshot(msgspec.Struct):
    """Everything that one worker counted, or several together. `requests`: route -> status -> count."""

    worker: int
    at: float
    error_bounds: tuple[float, ...]
    requests: dict[str, dict[str, int]] = msgspec.field(default_factory=dict)
    latency: dict[str, Histogram] = msgspec.field(default_factory=dict)
    lookup: Histogram = msgspec.field(default_factory=lambda: Histogram.empty(LOOKUP_BOUNDS))
    batch: Histogram = msgspec.field(default_factory=lambda: Histogram.empty(BATCH_BOUNDS))
    squared_error: Histogram = msgspec.field(default_factory=lambda: Histogram.empty(()))
    predictions: int = 0
    folds: int = 0
    ratings: int = 0
    ratings_deleted: int = 0
    users_forgotten: int = 0
    exceptions: int = 0
    overloads: int = 0
    # What follows describes the worker now and is not summed blindly.
    generation: int = 0
    epoch: int = 0
    in_flight: int = 0
    connections: int = 0
    reconnects: int = 0
    resident_bytes: int = 0
    recent_ratings: float = 0.0
    recent_errors: float = 0.0
    recent_squared_error: float = 0.0

    def __post_init__(self) -> None:
        if not self.squared_error.bounds:
            self.squared_error = Histogram.empty(self.error_bounds)

    def request(self, route: str, status: int, seconds: float, times: int = 1) -> None:
        """Count `times` answers of `route` with `status` that took up to `seconds`."""
        by_status = self.requests.get(route)
        if by_status is None:
            by_status = self.requests[route] = {}
            self.latency[route] = Histogram.empty(LATENCY_BOUNDS)
        code = str(status)
        by_status[code] = by_status.get(code, 0) + times
        self.latency[route].observe(seconds, times)

    def rated(self, squared_errors: npt.NDArray[np.float64], ratings: int) -> None:
        """Count `ratings` that arrived, of which some were predicted first with `squared_errors` (n,)."""
        self.ratings += ratings
        self.recent_ratings += ratings
        if len(squared_errors):
            self.squared_error.observe_all(squared_errors)
            self.recent_errors += len(squared_errors)
            self.recent_squared_error += float(squared_errors.sum())

    def carry(self, earlier: "Snapshot") -> None:
        """Add the counters of `earlier`; what describes a worker's present stays."""
        for route, by_status in earlier.requests.items():
            mine = self.requests.setdefault(route, {})
            for status, count in by_status.items():
                mine[status] = mine.get(status, 0) + count
            self.latency.setdefault(route, Histogram.empty(LATENCY_BOUNDS)).add(earlier.latency[route])
        for name in ("lookup", "batch", "squared_error"):
            getattr(self, name).add(getattr(earlier, name))
        for name in _COUNTERS:
            setattr(self, name, getattr(self, name) + getattr(earlier, name))


_COUNTERS = (
    *("predictions", "folds", "ratings", "ratings_deleted", "users_forgotten", "exceptions", "overloads"),
    "reconnects",
)
_PRESENT = ("in_flight", "connections", "recent_ratings", "recent_errors", "recent_squared_error")


def error_bounds(low: float, high: float) -> tuple[float, ...]:
    """Bounds of squared errors for a scale."""
    width = max(high - low, 1e-9)
    return tuple((share * width) ** 2 for share in ERROR_SHARES)


class SnapshotFiles:
    """The snapshots of the workers of a host, one file each in `folder`; without a folder there is one
    worker.
    """

    def __init__(self, folder: Path | None, worker: int) -> None:
        self._folder = folder
        self._worker = worker

    def _path(self, folder: Path) -> Path:
        return folder / f"worker-{self._worker}.metrics"

    def earlier(self) -> Snapshot | None:
        """What the worker counted whose place this one takes."""
        return None if self._folder is None else _load(self._path(self._folder))

    def write(self, snapshot: Snapshot) -> None:
        """Put `snapshot` where the others find it. A full disk costs the others a view of this worker,
        nothing more.
        """
        if self._folder is None:
            return
        path = self._path(self._folder)
        fresh = path.with_suffix(".new")
        with contextlib.suppress(OSError):
            fresh.write_bytes(msgspec.json.encode(snapshot))
            fresh.replace(path)

    def all(self, own: Snapshot) -> list[Snapshot]:
        """The snapshots of all workers by worker, this one's as it is now."""
        found = {own.worker: own}
        if self._folder is not None:
            for path in self._folder.glob("worker-*.metrics"):
                snapshot = _load(path)
                if snapshot is not None and snapshot.worker != own.worker:
                    found[snapshot.worker] = snapshot
        return [found[worker] for worker in sorted(found)]


def _load(path: Path) -> Snapshot | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Snapshot)
    except (OSError, msgspec.DecodeError):
        return None


def together(snapshots: Iterable[Snapshot]) -> Snapshot:
    """The sum of `snapshots`, which are at least one."""
    found = list(snapshots)
    total = Snapshot(-1, time.time(), found[0].error_bounds)
    for snapshot in found:
        total.carry(snapshot)
        for name in _PRESENT:
            setattr(total, name, getattr(total, name) + getattr(snapshot, name))
    return total
