"""What a player is: it learns a history, predicts one pair at a time, and may learn each true rating."""

from dataclasses import replace
from typing import Protocol

import numpy as np

from environment.client import KnownRatings, Pair


class PlayerFailedError(Exception):
    """The player cannot prepare, answer or learn; the message is for a person."""


class Player(Protocol):
    """A player of one world. Called in order: `prepare`, then `predict` and `learn` in turn, then `close`.

    `note` says after `prepare` what a reader of the results should know, empty for nothing. `std`: the
    standard deviation of the rating that was predicted last, NaN for a player that has none.
    """

    @property
    def note(self) -> str: ...

    @property
    def std(self) -> float: ...

    async def prepare(self, history: KnownRatings) -> None:
        """Learn the history. Raises PlayerFailedError."""

    async def predict(self, pair: Pair) -> float:
        """Return the expected rating of the pair. Raises PlayerFailedError when there is no answer."""

    async def learn(self, pair: Pair, rating: float) -> None:
        """Take in the true rating of a pair. Raises PlayerFailedError."""

    async def close(self) -> None:
        """Free what the player holds. Safe to repeat."""


class BlindPlayer:
    """`player`, which is shown no variables of the events: what reading them is worth is the difference. It
    plays the same pairs, and sees the same ratings.
    """

    def __init__(self, player: Player) -> None:
        self._player = player

    @property
    def note(self) -> str:
        """See `Player`."""
        return self._player.note

    @property
    def std(self) -> float:
        """See `Player`."""
        return self._player.std

    async def prepare(self, history: KnownRatings) -> None:
        """See `Player`."""
        await self._player.prepare(replace(history, variables=np.empty((history.rating.size, 0))))

    async def predict(self, pair: Pair) -> float:
        """See `Player`."""
        return await self._player.predict(Pair(pair.user, pair.item))

    async def learn(self, pair: Pair, rating: float) -> None:
        """See `Player`."""
        await self._player.learn(Pair(pair.user, pair.item), rating)

    async def close(self) -> None:
        """See `Player`."""
        await self._player.close()
