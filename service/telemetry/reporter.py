"""What a worker tells of itself every ten seconds. Invariant: a point has what was done since the one before,
so that the sum over points is what was done.
"""

import asyncio
import time
from typing import Any

import numpy as np

from factors import Int64s
from featurestore.telemetry.points import EVERY_S, Point
from service.context import ServiceContext
from service.experiments.background import BackgroundSteps
from service.metrics import LATENCY_BOUNDS, Counts


class Reporter:
    """Tells what the worker of `context` does, as one of those of `host`."""

    def __init__(self, context: ServiceContext, host: str) -> None:
        self._context = context
        self._host = host
        self._steps = BackgroundSteps("tell what this worker does", context.counts)
        self._done = _done(context.counts)
        self._answered = _answered(context.counts)
        self._told = time.monotonic()

    async def run(self) -> None:
        """Tell every ten seconds until cancelled."""
        while True:
            await asyncio.sleep(EVERY_S)
            await self._steps.make(self.tell())

    async def tell(self) -> None:
        """Tell once."""
        context, store, now = self._context, self._context.store, time.monotonic()
        counts = context.snapshot()
        done, answered = _done(counts), _answered(counts)
        point = Point(
            *(f"worker {counts.worker}", self._host, time.time(), now - self._told),
            **{name: each - self._done[name] for name, each in done.items()},
            latency=(answered - self._answered).tolist(),
            generation=counts.generation,
            in_flight=counts.in_flight,
            resident_bytes=counts.resident_bytes,
        )
        self._done, self._answered, self._told = done, answered, now
        if context.slot.worker == 0:
            # One process of a host asks for what is the same for all of them.
            lag = await store.stream.lag(await context.epoch())
            point.lag, point.store_bytes = sum(lag.values()), (await store.room.load()).used_bytes
        await store.telemetry.add(point)


def _done(counts: Counts) -> dict[str, Any]:
    """Return all that was counted so far, by the names of a point."""
    statuses = [each for by_status in counts.requests.values() for each in by_status.items()]
    return {
        "requests": sum(n for _, n in statuses),
        "failures": sum(n for status, n in statuses if status >= "500"),
        "turned_away": sum(n for status, n in statuses if status in {"401", "403", "429"}),
        "mistakes": counts.exceptions,
        "predictions": counts.predictions,
        "ratings": counts.ratings,
        "errors": counts.squared_error.count,
        "squared_error": counts.squared_error.sum,
        "baseline": counts.baseline_squared_error,
    }


def _answered(counts: Counts) -> Int64s:
    """Return the answers so far by upper bound of the time that they took; those of trainings, which are
    waited for, left out.
    """
    total = np.zeros(len(LATENCY_BOUNDS) + 1, dtype=np.int64)
    for route, histogram in counts.latency.items():
        if route != "/train":
            total += histogram.counts
    return total
