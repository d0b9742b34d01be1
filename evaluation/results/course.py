"""What a course evaluation found: a result a run, a summary a player and length of history.

Invariant: a figure of several runs is the mean of the runs' figures, as the course has it.
"""

import math
from dataclasses import dataclass, field
from statistics import fmean

import numpy as np
import numpy.typing as npt

from evaluation.metrics import inside


@dataclass(frozen=True, slots=True)
class Tally:
    """What a player did, step by step: `squared_error`, `answer_s` and `std` float64 (n_steps,).

    `answer_s` is NaN where the answer is missing, `std` NaN where the player has none (or empty).
    """

    squared_error: npt.NDArray[np.float64]
    answer_s: npt.NDArray[np.float64]
    std: npt.NDArray[np.float64] = field(default_factory=lambda: np.empty(0))

    @property
    def steps(self) -> int:
        """Steps played."""
        return self.squared_error.size

    @property
    def missing(self) -> int:
        """Number of answers that did not come."""
        return int(np.isnan(self.answer_s).sum())

    @property
    def mse(self) -> float:
        """Mean squared error over all steps, NaN before the first."""
        return float(self.squared_error.mean()) if self.steps else math.nan

    @property
    def running_mse(self) -> npt.NDArray[np.float64]:
        """Mean squared error up to and including each step, (n_steps,)."""
        running: npt.NDArray[np.float64] = np.cumsum(self.squared_error) / np.arange(1, self.steps + 1)
        return running

    @property
    def coverage(self) -> float:
        """Share of the true ratings inside the 90 % interval of their answer; NaN where no answer had a
        standard deviation.
        """
        known = np.isfinite(self.std)
        if not known.any():
            return math.nan
        return float(inside(np.sqrt(self.squared_error[known]), self.std[known]).mean())

    def recent_mse(self, steps: int) -> float:
        """Mean squared error of the last `steps` steps, NaN before the first."""
        return float(self.squared_error[-steps:].mean()) if self.steps else math.nan

    def answer_ms(self, percentile: float) -> float:
        """Percentile of the time an answer took, in milliseconds; NaN when none came."""
        came = self.answer_s[~np.isnan(self.answer_s)]
        return 1_000.0 * float(np.percentile(came, percentile)) if came.size else math.nan


@dataclass(frozen=True, slots=True)
class Result:
    """One run of one player. `known`: ratings it was shown; `seconds`: in all, `prepare_s` of them to learn
    those.
    """

    player: str
    known: int
    run: int
    tally: Tally
    prepare_s: float
    seconds: float
    note: str


@dataclass(frozen=True, slots=True)
class Summary:
    """The runs of one player with `known` ratings. `mse` is the course's figure: the mean over the runs.

    `coverage`: share of the ratings inside its 90 % intervals, NaN where it has none.
    """

    player: str
    known: int
    mse: float
    run_mse: tuple[float, ...]
    missing: int
    prepare_s: float
    seconds: float
    answer_p50_ms: float
    answer_p99_ms: float
    note: str
    coverage: float


@dataclass(frozen=True, slots=True)
class EvaluationReport:
    """All results of an evaluation. `seed` repeats it. `same_worlds`: the players of each run faced the same
    pairs.
    """

    results: tuple[Result, ...]
    steps: int
    seed: int
    same_worlds: bool

    def summaries(self) -> list[Summary]:
        """Return a summary for each player and length of history, in the order in which they played."""
        # A dictionary keeps the order of its first keys: that of the games.
        groups: dict[tuple[int, str], list[Result]] = {}
        for result in self.results:
            groups.setdefault((result.known, result.player), []).append(result)
        return [_summary(results) for results in groups.values()]

    def mse(self, player: str) -> float:
        """Return the course's figure of `player` with the longest history. Raises KeyError for one that did
        not play.
        """
        summaries = [summary for summary in self.summaries() if summary.player == player]
        if not summaries:
            raise KeyError(player)
        return max(summaries, key=lambda summary: summary.known).mse


def _summary(results: list[Result]) -> Summary:
    # Percentiles and coverage are of the steps of all runs together.
    together = Tally(
        np.concatenate([result.tally.squared_error for result in results]),
        np.concatenate([result.tally.answer_s for result in results]),
        np.concatenate([result.tally.std for result in results]),
    )
    run_mse = tuple(result.tally.mse for result in results)
    return Summary(
        player=results[0].player,
        known=results[0].known,
        mse=fmean(run_mse),
        run_mse=run_mse,
        missing=together.missing,
        prepare_s=fmean(result.prepare_s for result in results),
        seconds=sum(result.seconds for result in results),
        answer_p50_ms=together.answer_ms(50),
        answer_p99_ms=together.answer_ms(99),
        note="; ".join(dict.fromkeys(result.note for result in results if result.note)),
        coverage=together.coverage,
    )
