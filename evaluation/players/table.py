"""The ratings that a local player knows, as a dense table that grows with the users and items that appear.

Invariant: `values` is 0 wherever `seen` is 0, so a matrix product sums over the seen ratings only.
"""

import numpy as np
import numpy.typing as npt

from environment.client import KnownRatings
from evaluation.players.base import PlayerFailedError

Floats = npt.NDArray[np.float64]

MAX_CELLS = 20_000_000  # two float64 tables of 160 MB; a world has at most 4 million pairs


class RatingTable:
    """`values`, `seen`: float64 (n_users, n_items); `seen` is 1 where a rating is known. Replaced when the
    table grows.
    """

    def __init__(self, history: KnownRatings) -> None:
        n_users = max(history.n_users, int(history.user.max(initial=-1)) + 1)
        n_items = max(history.n_items, int(history.item.max(initial=-1)) + 1)
        self._refuse_too_large(n_users, n_items)
        self.values: Floats = np.zeros((n_users, n_items))
        self.seen: Floats = np.zeros((n_users, n_items))
        self.values[history.user, history.item] = history.rating
        self.seen[history.user, history.item] = 1.0

    def add(self, user: int, item: int, rating: float) -> None:
        """Enter one rating, in place of an earlier one of that pair."""
        self.make_room(user, item)
        self.values[user, item] = rating
        self.seen[user, item] = 1.0

    # An environment may name users and items beyond the sizes that it gave at the start.
    def make_room(self, user: int, item: int) -> None:
        """Grow so that the pair has a cell. Raises PlayerFailedError beyond `MAX_CELLS`."""
        n_users, n_items = self.values.shape
        if user < n_users and item < n_items:
            return
        self._refuse_too_large(max(user + 1, n_users), max(item + 1, n_items))
        margin = ((0, max(user + 1 - n_users, 0)), (0, max(item + 1 - n_items, 0)))
        self.values = np.pad(self.values, margin)
        self.seen = np.pad(self.seen, margin)

    def mean(self) -> float:
        """Return the mean of all known ratings, the middle of the scale where there is none."""
        count = float(self.seen.sum())
        return float(self.values.sum()) / count if count else 3.0

    @staticmethod
    def _refuse_too_large(n_users: int, n_items: int) -> None:
        if n_users * n_items > MAX_CELLS:
            raise PlayerFailedError(f"{n_users} users x {n_items} items are too many for this player")
