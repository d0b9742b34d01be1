"""A sweep of the fit over 18.4 million ratings, with either link, beside one of `implicit`'s conjugate
gradient on the same matrix.

Invariant: both run in this process with the same number of threads, a sweep of one after a sweep of the
other, and only the sweep itself is timed: neither reading nor sorting the ratings.
"""

import contextlib
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from rich.console import Console
from scipy import sparse
from threadpoolctl import threadpool_limits

from benchmarks.data.datasets import synthetic
from benchmarks.harness.command import Options, carry_out, read
from benchmarks.harness.progress import turns
from benchmarks.harness.report import Row, at_most, compared, ratios
from evaluation.offline.data import DataSet
from evaluation.offline.jobs import memory_mb
from factors import FitSettings, Link, fit
from processes.settings import setting, whole

# Of the shape of MovieLens 20M, some of whose ratings are held out.
USERS, ITEMS, RATINGS, RANK, THREADS = 138_000, 27_000, 18_400_000, 16, 2
# Both sides shrink alike (see `measure`), so that the ratio still says something.
QUICK_SCALE, QUICK_ROUNDS = 0.05, 3
_LINKS: tuple[Link, Link] = ("gaussian", "ordinal")


@dataclass(frozen=True, slots=True)
class SweepOptions(Options):
    """Those of every benchmark, and of the fit."""

    rank: int = setting(RANK, "of the model", whole(1, 1000))
    threads: int = setting(THREADS, "of each of the two", whole(1, 1000))
    quick: bool = setting(
        False, f"{QUICK_SCALE:.0%} of the ratings and {QUICK_ROUNDS} rounds: 20 seconds instead of 3 minutes"
    )


class _EnoughError(Exception):
    """There were as many sweeps as rounds: the rest of the fit is not needed."""


class Turns:
    """Called after each sweep of the fit: times it, then lets `implicit` do one."""

    def __init__(self, data: DataSet, rounds: int, rank: int, threads: int, seed: int) -> None:
        # Here, so that the help and a wrong flag do not load it.
        from implicit.als import AlternatingLeastSquares

        ratings = data.ratings
        self._matrix = sparse.csr_matrix(
            (ratings.value.astype(np.float32), (ratings.user_row, ratings.item_row)),
            shape=(data.n_users, data.n_items),
        )
        self._peer = AlternatingLeastSquares(
            factors=rank, iterations=1, use_gpu=False, use_cg=True, num_threads=threads, random_state=seed
        )
        self._rounds = rounds
        self._turns = turns(rounds)
        self.sweeps: list[float] = []
        self.peer_sweeps: list[float] = []
        self._began: float | None = None

    def __call__(self, sweep: int, metrics: dict[str, float]) -> None:
        """Time the sweep that has ended, then one of `implicit`."""
        # The first sweep touches all memory for the first time: it does not count, on either side.
        now = time.perf_counter()
        next(self._turns, None)
        if self._began is not None:
            self.sweeps.append(now - self._began)
        times: list[float] = []
        self._peer.fit(
            self._matrix, show_progress=False, callback=lambda _, seconds, __: times.append(seconds)
        )
        if self._began is not None:
            self.peer_sweeps += times
        if len(self.sweeps) == self._rounds:
            raise _EnoughError
        self._began = time.perf_counter()


def measure(options: SweepOptions, console: Console) -> list[Row]:
    """Measure the seconds of a sweep on both sides."""
    # As sparse as the full one: both sides shrink with the root of the scale.
    root, rank, threads = options.scale**0.5, options.rank, options.threads
    n_users, n_items = max(200, round(USERS * root)), max(100, round(ITEMS * root))
    n_ratings = options.size(RATINGS, 2000)
    # Drawing pairs gives some twice; a tenth more makes up for it.
    data = synthetic(n_users, n_items, round(1.1 * n_ratings), seed=options.seed)
    n_ratings = min(n_ratings, len(data.ratings.value))
    kept = np.arange(n_ratings)
    data = DataSet(data.name, data.part(kept), data.n_users, data.n_items, data.scale)
    console.print(f"{n_ratings:,} ratings of {n_users:,} users and {n_items:,} items made", style="dim")
    gaussian, ordinal = (_turns(data, options, link) for link in _LINKS)
    per_rating = memory_mb() * 1e6 / n_ratings
    what = f"{n_ratings:,} ratings, rank {rank}, {threads} threads"
    return [
        Row("implicit, conjugate gradient: a sweep", "s", tuple(gaussian.peer_sweeps), guards=True),
        Row(
            f"a sweep, {what}",
            "x",
            ratios(gaussian.sweeps, gaussian.peer_sweeps),
            at_most(1.0, 1.5),
            "implicit, conjugate gradient",
            f"{compared(gaussian.sweeps, gaussian.peer_sweeps)} s",
        ),
        Row(
            f"a sweep with the ordinal link, as served, {what}",
            "x",
            ratios(ordinal.sweeps, ordinal.peer_sweeps),
            against="implicit, conjugate gradient",
            detail=f"{compared(ordinal.sweeps, ordinal.peer_sweeps)} s",
        ),
        Row("peak memory of both together, a rating", "bytes", (per_rating,)),
    ]


def _turns(data: DataSet, options: SweepOptions, link: Link) -> Turns:
    """Return the sweeps of a fit with this link, beside those of `implicit`."""
    # More sweeps than rounds: the first does not count, and the last turn ends the fit by an error. Without a
    # tolerance it does not stop by itself before.
    settings = FitSettings(
        data.scale,
        rank=options.rank,
        link=link,
        sweeps=options.rounds + 2,
        tolerance=0.0,
        threads=options.threads,
    )
    # Both divide their rows among threads themselves: BLAS threads within those would fight for the cores.
    with threadpool_limits(1, user_api="blas"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # implicit's remarks on BLAS threads
        turns = Turns(data, options.rounds, options.rank, options.threads, options.seed)
        with contextlib.suppress(_EnoughError):
            fit(
                data.ratings,
                data.n_users,
                data.n_items,
                settings=settings,
                rng=np.random.default_rng(options.seed),
                progress=turns,
            )
    return turns


def main(argv: Sequence[str]) -> int:
    """As `harness.command.benchmark`, with a short form."""
    options = read(SweepOptions, "fit", __doc__, argv)
    if options.quick:
        options = replace(options, scale=QUICK_SCALE, rounds=QUICK_ROUNDS)
    return carry_out("fit", measure, options)
