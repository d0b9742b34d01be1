"""One player at one game: asks it for each pending pair, hands the answer in, counts, and lets it learn.

Invariant: whatever a player does, the game goes on; an answer that does not come counts `MISSING_ERROR`.
"""

import asyncio
import math
import time

import numpy as np

from environment.client import EnvironmentClient, KnownRatings, Pair
from evaluation.players import Player, PlayerFailedError
from evaluation.results.course import Tally

MISSING_ERROR = 1_000.0  # the course's rule
PLACEHOLDER = 3.0  # handed in for a missing answer: the environment wants some number


class GameOverError(Exception):
    """The world has no pair left."""


class Seat:
    """A player and its game. Not for use by two tasks at once."""

    def __init__(
        self, name: str, player: Player, client: EnvironmentClient, *, answer_timeout_s: float
    ) -> None:
        self.name = name
        self._player = player
        self._client = client
        self._answer_timeout_s = answer_timeout_s
        self._pending: Pair | None = None
        self._errors: list[float] = []
        self._seconds: list[float] = []
        self._stds: list[float] = []
        self._failed: str | None = None
        self._last_trouble = ""
        self.prepare_s = 0.0
        self.lost_ratings = 0

    async def reset(self, seed: int) -> KnownRatings:
        """Begin the game; return the history of its world. Raises EnvironmentFailedError."""
        history, self._pending = await self._client.reset(seed)
        return history

    async def prepare(self, history: KnownRatings, *, timeout_s: float) -> None:
        """Let the player learn. Raises PlayerFailedError; if play goes on all the same, its answers are
        missing.
        """
        started = time.perf_counter()
        try:
            async with asyncio.timeout(timeout_s):
                await self._player.prepare(history)
        except TimeoutError:
            self._failed = f"had not learned the history after {timeout_s:g} s"
        except PlayerFailedError as error:
            self._failed = str(error)
        self.prepare_s = time.perf_counter() - started  # of a failure, too
        if self._failed is not None:
            raise PlayerFailedError(f"{self.name}: {self._failed}")

    async def step(self) -> None:
        """Play one pair. Raises GameOverError after the last, and EnvironmentFailedError."""
        if self._pending is None:
            raise GameOverError
        # The player answers before the rating is fetched: it cannot see it, and a failure costs one step.
        pair = self._pending
        prediction, seconds = await self._ask(pair)
        rating, self._pending = await self._client.rate(PLACEHOLDER if prediction is None else prediction)
        self._errors.append(MISSING_ERROR if prediction is None else (prediction - rating) ** 2)
        self._seconds.append(seconds)
        self._stds.append(math.nan if prediction is None else self._player.std)
        if self._failed is None:
            await self._teach(pair, rating)

    def tally(self) -> Tally:
        """Return what happened so far."""
        columns = (np.array(column, dtype=np.float64) for column in (self._errors, self._seconds, self._stds))
        return Tally(*columns)

    @property
    def note(self) -> str:
        """What a reader of the results should know, empty for nothing."""
        parts = [self._player.note, self._failed or "", self._last_trouble]
        if self.lost_ratings:
            parts.append(f"{self.lost_ratings} ratings not taken")
        return "; ".join(part for part in parts if part)

    async def close(self) -> None:
        """Close the player."""
        await self._player.close()

    async def _ask(self, pair: Pair) -> tuple[float | None, float]:
        if self._failed is not None:
            return None, math.nan
        started = time.perf_counter()
        try:
            async with asyncio.timeout(self._answer_timeout_s):
                prediction = await self._player.predict(pair)
        except TimeoutError:
            self._last_trouble = f"last missing answer: none after {self._answer_timeout_s:g} s"
            return None, math.nan
        except PlayerFailedError as error:
            self._last_trouble = f"last missing answer: {error}"
            return None, math.nan
        if not math.isfinite(prediction):  # JSON of an API can hold 1e999
            self._last_trouble = f"last missing answer: {prediction} is not a rating"
            return None, math.nan
        return prediction, time.perf_counter() - started

    async def _teach(self, pair: Pair, rating: int) -> None:
        try:
            async with asyncio.timeout(self._answer_timeout_s):
                await self._player.learn(pair, float(rating))
        except (TimeoutError, PlayerFailedError):
            # Not an error of this step: what it costs shows in the predictions that follow.
            self.lost_ratings += 1
