"""Intervals of what the processes have told, for pictures. Invariant: what is shown of an interval is of all
replicas together; where none has told anything it is null, never 0.
"""

from collections.abc import Sequence

import msgspec
import numpy as np
import numpy.typing as npt

from factors import Bools, Float64s
from featurestore.telemetry.points import EVERY_S, Point, StoreServer
from service.metrics import LATENCY_BOUNDS

# A process that has told nothing for so long is not at work.
PRESENT_S = 3 * EVERY_S
# As many as a picture of usual width shows apart.
MOST_INTERVALS = 180
LONGEST_S = 7 * 86_400  # what the store keeps of one worker

Line = list[float | None]


class Replica(msgspec.Struct):
    """A process that is at work. `at`: when it told of itself, seconds since 1970. `busy`: what a trainer is
    at; `failed`: why its last fit did not go live, at `failed_at`; `wrong`: a sentence for each alert whose
    condition it finds in itself.
    """

    process: str
    host: str
    generation: int
    requests_per_s: float
    in_flight: int
    resident_bytes: int
    busy: str
    at: float
    failed: str = ""
    failed_at: float = 0.0
    wrong: dict[str, str] = {}


class HistoryOut(msgspec.Struct):
    """Intervals of `step_s` seconds, the oldest first; null where no process has told of itself.

    `at`: their ends, seconds since 1970. `rmse`, `baseline_rmse`: of ratings that arrived, as predicted
    before they were learned, and as an unknown user would be told. `failures_per_s`, `turned_away_per_s`:
    answers of 5xx, and of 401, 403 and 429; `mistakes_per_s`: unexpected exceptions. `servers`: of the store,
    as a trainer has found them last.
    """

    step_s: float
    at: list[float]
    rmse: Line
    baseline_rmse: Line
    requests_per_s: Line
    failures_per_s: Line
    turned_away_per_s: Line
    mistakes_per_s: Line
    p50_s: Line
    p99_s: Line
    predictions_per_s: Line
    ratings_per_s: Line
    generation: list[int | None]
    lag: Line
    workers_bytes: Line
    store_bytes: Line
    trainer_bytes: Line
    replicas: list[Replica]
    servers: list[StoreServer] = []


class _Intervals:
    """The points (m,) of `n` intervals that end at `now`."""

    def __init__(self, points: Sequence[Point], now: float, step_s: float, n: int) -> None:
        ends = np.array([each.at for each in points], dtype=np.float64)
        interval = n - 1 - ((now - ends) // step_s).astype(np.int64)
        # A clock of another host may be ahead.
        interval = np.minimum(interval, n - 1)
        inside = interval >= 0
        self.points = [point for point, kept in zip(points, inside.tolist(), strict=True) if kept]
        self._interval = interval[inside]
        self._n = n
        self.is_worker = np.array([each.process.startswith("worker") for each in self.points], dtype=bool)

    def column(self, name: str) -> Float64s:
        """Return a field of each point."""
        return np.array([getattr(each, name) for each in self.points], dtype=np.float64)

    def sums(self, values: npt.NDArray[np.generic]) -> Float64s:
        """Return the sum (n,) of values (m,) over the points of each interval."""
        return np.bincount(self._interval, weights=values, minlength=self._n).astype(np.float64)

    def counts(self) -> Float64s:
        """Return the answers (n, bounds + 1) by upper bound of their time."""
        total = np.zeros((self._n, len(LATENCY_BOUNDS) + 1))
        for at, each in zip(self._interval.tolist(), self.points, strict=True):
            # A process of another version may have other bounds.
            if len(each.latency) == total.shape[1]:
                total[at] += each.latency
        return total

    def means(self, values: Float64s, kept: Bools) -> Line:
        """Return the mean of those values (m,) that are `kept`."""
        told = self.sums(kept)
        return _line(self.sums(np.where(kept, values, 0.0)) / np.maximum(told, 1.0), told > 0)

    def of_all(self, values: Float64s, kept: Bools) -> Line:
        """Return the sum over processes of the mean of each."""
        names = [(each.host, each.process) for each in self.points]
        total, there = np.zeros(self._n), np.zeros(self._n, dtype=bool)
        for name in set(names):
            own = kept & np.array([each == name for each in names], dtype=bool)
            told = self.sums(own)
            total += self.sums(np.where(own, values, 0.0)) / np.maximum(told, 1.0)
            there |= told > 0
        return _line(total, there)

    def generations(self) -> list[int | None]:
        """Return the newest generation that a worker served."""
        newest = np.zeros(self._n)
        np.maximum.at(newest, self._interval, np.where(self.is_worker, self.column("generation"), 0.0))
        return [int(each) or None for each in newest.tolist()]


def history_of(points: Sequence[Point], now: float, seconds: float) -> HistoryOut:
    """Return what `points`, in the order in which they came, say of the last `seconds`."""
    # Whole points in each interval.
    step_s = EVERY_S * max(1, round(seconds / (MOST_INTERVALS * EVERY_S)))
    n = max(1, int(seconds // step_s))
    found = _Intervals(points, now, step_s, n)
    here, errors = found.sums(found.is_worker) > 0, found.sums(found.column("errors"))

    def rate(name: str) -> Line:
        return _line(found.sums(found.column(name)) / step_s, here)

    def error(name: str) -> Line:
        return _line(np.sqrt(found.sums(found.column(name)) / np.maximum(errors, 1.0)), errors > 0)

    counts = found.counts()
    answered, lag, resident = counts.any(axis=1), found.column("lag"), found.column("resident_bytes")
    return HistoryOut(
        step_s=step_s,
        at=(now - step_s * np.arange(n - 1, -1, -1)).tolist(),
        rmse=error("squared_error"),
        baseline_rmse=error("baseline"),
        requests_per_s=rate("requests"),
        failures_per_s=rate("failures"),
        turned_away_per_s=rate("turned_away"),
        mistakes_per_s=rate("mistakes"),
        p50_s=_line(_quantiles(counts, 0.5), answered),
        p99_s=_line(_quantiles(counts, 0.99), answered),
        predictions_per_s=rate("predictions"),
        ratings_per_s=rate("ratings"),
        generation=found.generations(),
        lag=found.means(lag, lag >= 0),
        workers_bytes=found.of_all(resident, found.is_worker),
        store_bytes=found.means(found.column("store_bytes"), lag >= 0),
        trainer_bytes=found.of_all(resident, ~found.is_worker),
        replicas=_replicas(found.points, now),
        servers=_servers(found.points, now),
    )


def _line(values: Float64s, known: npt.ArrayLike) -> Line:
    return [
        value if there else None
        for value, there in zip(values.tolist(), np.asarray(known).tolist(), strict=True)
    ]


def _replicas(points: Sequence[Point], now: float) -> list[Replica]:
    last = {(each.host, each.process): each for each in points if now - each.at <= PRESENT_S}
    return [
        Replica(
            *(each.process, each.host, each.generation, each.requests / max(each.seconds, EVERY_S / 10)),
            *(each.in_flight, each.resident_bytes, each.busy, each.at),
            failed=each.failed,
            failed_at=each.failed_at,
            wrong=each.wrong,
        )
        for _, each in sorted(last.items())
    ]


def _servers(points: Sequence[Point], now: float) -> list[StoreServer]:
    told = (each.servers for each in reversed(points) if each.servers and now - each.at <= PRESENT_S)
    return next(told, [])


def _quantiles(counts: Float64s, share: float) -> Float64s:
    """Return the quantile of each row of `counts` (n, bounds + 1), taken as even within a bound."""
    bounds = np.array([0.0, *LATENCY_BOUNDS, LATENCY_BOUNDS[-1]])
    cumulated, rows = counts.cumsum(axis=1), np.arange(len(counts))
    wanted = share * cumulated[:, -1]
    at = np.minimum((cumulated < wanted[:, None]).sum(axis=1), counts.shape[1] - 1)
    inside = counts[rows, at]
    part = (wanted - cumulated[rows, at] + inside) / np.maximum(inside, 1.0)
    quantiles: Float64s = bounds[at] + part * (bounds[at + 1] - bounds[at])
    return quantiles
