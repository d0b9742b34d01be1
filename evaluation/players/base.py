"""What a player is: it learns a history, answers one pair at a time, and may learn each true rating
afterwards.
"""

from typing import Protocol

from environment.client import History


class PlayerFailedError(Exception):
    """The player cannot prepare or answer; the message says why, for a person. A missing answer counts as
    such.
    """


class Player(Protocol):
    """A player of one world. Called in order: `prepare`, then `predict` and `learn` in turn, then `close`.

    `note` says after `prepare` what a reader of its results should know, empty if nothing. `std`: the
    standard deviation of the rating that was predicted last, NaN for a player that has none.
    """

    @property
    def note(self) -> str: ...

    @property
    def std(self) -> float: ...

    async def prepare(self, history: History) -> None:
        """Learn what is known. Raises PlayerFailedError."""

    async def predict(self, user: int, item: int) -> float:
        """The expected rating of the pair. Raises PlayerFailedError when there is no answer."""

    async def learn(self, user: int, item: int, rating: float) -> None:
        """Take in the true rating of a pair. Raises PlayerFailedError."""

    async def close(self) -> None:
        """Let go of what was held. Safe to repeat."""
