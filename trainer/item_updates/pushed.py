"""Which items are pushed by accounts that are newer than the fit. Invariant: an account counts once an item,
by its last rating, and an item is told of once a fit.

Of the ratings since a fit some share comes from accounts that the fit does not know, and of those of an item
about as much. An item is told of where far more do, and where they move its mean. So a hit is not (old
accounts rate it too), nor is what every new account is asked to rate (which moves nothing).
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np
from scipy.special import bdtrc

from factors import Bools, Float64s, Int64s

# By chance one item in a million looks; each is looked at a few times a fit.
_CHANCE = 1e-6
# Of the range of the scale: 0.1 on one from 1 to 5.
_LEAST_MOVE = 0.025
# Fewer accounts are not told from chance unless nearly all ratings come from known ones.
_LEAST_ACCOUNTS = 5
# An item is looked at again when so many times as many ratings of new accounts have come: of n of them no
# more than 5 n are read.
_AGAIN = 1.25


@dataclass(frozen=True, slots=True)
class PushedItem:
    """An item that new accounts push: so many of its `raters` since the fit are `new_accounts`, where a share
    of `usual` would be; they have `moved` the mean of its ratings.
    """

    item_row: int
    new_accounts: int
    raters: int
    usual: float
    moved: float


class PushWatch:
    """Counts arrivals by item since a fit."""

    def __init__(self, scale_range: float) -> None:
        self._least_move = _LEAST_MOVE * scale_range
        # Of all items: ratings, those of new accounts, and the sum of the others.
        self._ratings, self._new, self._known_sum = 0, 0, 0.0
        # By item: ratings of new accounts, and with how many it is looked at next.
        self._new_of: Counter[int] = Counter()
        self._due: dict[int, float] = {}

    def add(self, item_row: Int64s, rating: Float64s, new: Bools) -> list[int]:
        """Count ratings (m,), `new` where the account is; return the items to be looked at now."""
        self._ratings += len(rating)
        self._new += int(np.count_nonzero(new))
        self._known_sum += float(rating[~new].sum())
        rows = Counter(item_row[new].tolist())
        self._new_of.update(rows)
        return [row for row in rows if self._new_of[row] >= self._due.get(row, _LEAST_ACCOUNTS)]

    def look(self, row: int, rating: Float64s, new: Bools, count: int, mean: float) -> PushedItem | None:
        """Say whether an item is pushed. `rating`, `new` (k,): of its raters since the fit, each once.
        `count`, `mean`: of its ratings before.
        """
        accounts, of_others = int(np.count_nonzero(new)), int(np.count_nonzero(~new))
        self._due[row] = _AGAIN * self._new_of[row]
        others = self._ratings - len(rating), self._new - accounts
        # One rating of each kind more: where nothing else has come, nothing is unusual.
        usual = (max(others[1], 0) + 1.0) / (max(others[0], 0) + 2.0)
        if accounts < _LEAST_ACCOUNTS or bdtrc(accounts - 1, len(rating), usual) > _CHANCE:
            return None
        before = count + of_others
        if before:
            known = ((mean * count if count else 0.0) + float(rating[~new].sum())) / before
        else:
            # Of an item that they alone have rated: what known accounts give on the whole.
            known = self._known_sum / max(self._ratings - self._new, 1)
        moved = (float(rating[new].mean()) - known) * accounts / (accounts + before)
        if abs(moved) < self._least_move:
            return None
        self._due[row] = np.inf
        return PushedItem(row, accounts, len(rating), usual, moved)
