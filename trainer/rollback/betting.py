"""Test whether the first of two predictors is worse, one rating after the other (testing by betting:
Waudby-Smith and Ramdas, 2023).

Invariant: however long and however often it is looked at, a first one that is not worse is condemned with a
probability of at most `_MISTAKES`, whatever up to `set_aside` of the users do.

A player bets on the first being worse: with each rating the capital becomes `1 + stake * d` times what it
was, where `d` is by how much the squared error of the first is larger. While the expectation of `d`, given
all before, is at most 0, no way of betting makes money: by Ville's inequality the capital grows from 1 to
1 / `_MISTAKES` with that probability at most. The stake may depend on all before and on both predictions,
but not on the rating.

What single users won for the player is known, and the first is condemned where the capital is enough without
the `set_aside` users who won most. So many liars cannot have won more than what is taken off; on the others,
the stake being fixed before each of their ratings, the inequality holds as before.
"""

import heapq
import math
from collections import Counter, defaultdict
from dataclasses import dataclass, field

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
    log_capital: float = 0.0
    errors: tuple[float, float] = (0.0, 0.0)
    _sum: float = 0.0
    _squares: float = 0.0
    _of_user: Counter[bytes] = field(default_factory=Counter)
    _won: defaultdict[bytes, float] = field(default_factory=lambda: defaultdict(float))

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
        # Mean over mean square makes capital grow fastest, if what was seen so far is all that there is.
        stake = self._sum / (self._squares + most * most)
        won = math.log1p(min(max(stake, 0.0), _MOST_LOST / most) * difference)
        self.log_capital += won
        self._won[user_id] += won
        self._sum += difference
        self._squares += difference * difference

    @property
    def first_is_worse(self) -> bool:
        """Whether it is known by now. Takes a millisecond for 10,000 users."""
        enough = -math.log(_MISTAKES)
        if self.log_capital < enough or len(self._of_user) < _LEAST_USERS:
            return False
        most = heapq.nlargest(self.set_aside, self._won.values())
        return self.log_capital - sum(won for won in most if won > 0.0) >= enough
