"""A player that is shown no variables: what reading them is worth is the difference.

Invariant: it plays the same pairs as the player that it is made of, and sees the same ratings.
"""

from dataclasses import replace

import numpy as np

from environment.client import KnownRatings, Pair
from evaluation.players.base import Player


class BlindPlayer:
    """`player`, without the numbers beside the events."""

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
