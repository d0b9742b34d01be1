"""Test whether the first of two predictors is worse, one rating after the other (testing by betting:
Waudby-Smith and Ramdas, 2023).

Invariant: however long and however often it is looked at, a first one that is not worse is condemned with a
probability of at most `_MISTAKES`, whatever up to `set_aside` of the users do.

A player bets on the first being worse: with each rating the capital becomes `1 + stake * d` times what it
was, where `d` is by how much the squared error of the first is larger. While the expectation of `d`, given
all before, is at most 0, no way of betting makes money: by Ville's inequality the capital grows from 1 to
1 / `_MISTAKES` with that probability at most. The capital begins in equal parts, each with a stake of its own
for good (a mixture: Robbins, 1970); of the parts the one with the best stake soon has nearly all.

What single users won for each part is known, and the first is condemned where the capital is enough without
the `set_aside` users who won most for each. So many liars cannot have won more than what is taken off; on the
others the inequality holds as before.
"""

import math
from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from factors import Float64s

# One good generation in a thousand is given up by mistake, and the next fit is not far.
_MISTAKES = 0.001
# Of the capital at most so much is lost with one rating: a run of bad luck leaves something to go on with.
_MOST_LOST = 0.5
# A user counts at most so many times as often as users do on average: a single account decides nothing.
_MOST_OF_A_USER = 2.0
# Fewer users condemn nothing.
_LEAST_USERS = 20
# What so many have not condemned no more will; it bounds the memory.
_MOST_RATINGS = 100_000
# Of the users of a generation so many may lie without harm: with more accounts an attacker spoils the fits.
_LIARS = 0.01
# Stakes in units of one over the square of the scale's range. Without users set aside the best one is the
# mean of `d` over its mean square, with many of them a smaller one. The first is bounded by `_MOST_LOST`
# nearly everywhere; below the last no generation would be condemned within `_MOST_RATINGS`. Between two of
# them, a third apart, three quarters of the growth of the best one are left.
_STAKES = 32.0 / 3.0 ** np.arange(8)
# Without the votes of more than these no generation would be condemned within `_MOST_RATINGS`.
_MOST_LIARS = 5_000


def liars_among(n_users: int) -> int:
    """Return how many of the users of a generation a bet is to bear: one, or 1 %, and 5,000 at most."""
    return min(max(1, math.ceil(_LIARS * n_users)), _MOST_LIARS)


@dataclass
class Bet:
    """What was seen of two predictors of ratings from `low` to `high`, and the player's capital. `errors`:
    sums of their squared errors. `set_aside`: how many users decide nothing.
    """

    low: float
    high: float
    set_aside: int = 1
    ratings: int = 0
    errors: tuple[float, float] = (0.0, 0.0)
    # By stake: the logarithm of the capital, and what each user has added to it.
    _log_capital: Float64s = field(default_factory=lambda: np.zeros(len(_STAKES)))
    _won: dict[bytes, Float64s] = field(default_factory=dict)
    _of_user: Counter[bytes] = field(default_factory=Counter)

    def add(self, user_id: bytes, first: float, second: float, rating: float) -> None:
        """Take a rating of a user that both have predicted and neither has learned. Ratings beyond the share
        of one user do not count.
        """
        own, users = self._of_user[user_id], max(len(self._of_user), 1)
        if self.ratings >= _MOST_RATINGS or (own and own >= _MOST_OF_A_USER * self.ratings / users):
            return
        self._of_user[user_id] += 1
        self.ratings += 1
        first, second, rating = (min(max(value, self.low), self.high) for value in (first, second, rating))
        self.errors = self.errors[0] + (rating - first) ** 2, self.errors[1] + (rating - second) ** 2
        # The difference is linear in the rating, so that its bound is known before the rating is.
        ends = [(second - first) * (2.0 * end - first - second) for end in (self.low, self.high)]
        most = max(map(abs, ends))
        if most == 0.0:
            return
        difference = (second - first) * (2.0 * rating - first - second)
        stakes = np.minimum(_STAKES / (self.high - self.low) ** 2, _MOST_LOST / most)
        won = np.log1p(stakes * difference)
        self._log_capital += won
        self._won[user_id] = self._won.get(user_id, 0.0) + won

    @property
    def log_capital(self) -> float:
        """The logarithm of the capital, that of all users."""
        return _log_mean(self._log_capital)

    @property
    def first_is_worse(self) -> bool:
        """Whether it is known by now. Takes some milliseconds for 10,000 users."""
        enough = -math.log(_MISTAKES)
        if self.log_capital < enough or len(self._of_user) < _LEAST_USERS:
            return False
        won = np.maximum(np.array(list(self._won.values())), 0.0)
        if self.set_aside >= len(won):
            return False
        most = np.sort(won, axis=0)[len(won) - self.set_aside :]
        return _log_mean(self._log_capital - most.sum(axis=0)) >= enough


def _log_mean(logarithms: Float64s) -> float:
    """Return the logarithm of the mean of what these are the logarithms of."""
    return float(np.logaddexp.reduce(logarithms)) - math.log(len(logarithms))
