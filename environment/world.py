"""A simulated world: the rating of every pair, and the order of the pairs.

Invariant: the same seed and options give the same world, on every machine.

Users and items are vectors of `DIMENSION` components drawn from N(1, 1); the score of a pair is their dot
product; its rating is the bin of the score among 1..5, cut at the 20/40/60/80 % points of a normal
distribution with the scores' theoretical mean and variance. A product of two independent N(1, 1) has mean 1
and variance 2 * 2 - 1 = 3, so a score has mean 3 and variance 9 (plus the variance of the noise, where there
is some).

With `variables`, each event has so many standard normal numbers `c` beside it, which shift and turn the taste
of its user for that event: the score is `(x_u + T c) . x_i + w . c`, with `w` of length `SHIFT` in a random
direction and the entries of `T` (3, k) drawn from N(0, TURN^2 / k). Given an item, the first adds a normal
term of variance `TURN^2 |x_i|^2`, 6 TURN^2 on average, the second one of variance SHIFT^2.

Every part of a world has a random stream of its own, so an option changes what it is about and nothing else:
the world with noise has the users, items and order of the world without.
"""

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from processes.settings import real, setting, whole

DIMENSION = 3  # of the lecture's users and items
SCALE = (1, 2, 3, 4, 5)  # the lecture's ratings
COURSE_STEPS = 1_000  # one run of the course's protocol; late users and items come in while it is played
MAX_PAIRS = 4_000_000  # drawing such a world takes about a second and 300 MB for a moment
DRIFT_EVENTS = 10_000  # the `drift` option counts in radians over so many events
MAX_VARIABLES = 32  # numbers of an event; the course's second environment has five
MAX_NUMBERS = 16_000_000  # of all events of a world: 128 MB for a moment
# The course never published how its variables enter a rating. Here they move a score by a standard deviation
# of 1 by themselves,
SHIFT = 1.0
# and each component of a taste by half of one, so that a score has variance 9 + 1 + 1.5.
TURN = 0.5

Floats = npt.NDArray[np.float64]
Positions = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class WorldOptions:
    """Sizes and difficulties of a world. `n_known` ratings are given at the start, the rest is played.

    `late_users`, `late_items`: share (0 to 0.9) that appears only later, half of them in the course of the
    history, half during the first `COURSE_STEPS` played steps. `drift`: how far tastes turn, in radians per
    `DRIFT_EVENTS` events. `noise`: standard deviation of the normal noise on each score (the scores' own is
    3). `n_variables`: how many numbers stand beside each event.
    """

    n_users: int = setting(100, "users of a world", whole(1, 100_000), flag="--users")
    n_items: int = setting(300, "items of a world", whole(1, 100_000), flag="--items")
    n_known: int = setting(10_000, "ratings given at the start", whole(0, MAX_PAIRS), flag="--known")
    late_users: float = setting(0.0, "share of the users that appear later", real(0, 0.9))
    late_items: float = setting(0.0, "share of the items that appear later", real(0, 0.9))
    drift: float = setting(0.0, "how far tastes turn in 10,000 events, in radians", real(0, 100))
    noise: float = setting(0.0, "standard deviation of the noise on each score", real(0, 100))
    n_variables: int = setting(
        0, "numbers beside each event that move its rating", whole(0, MAX_VARIABLES), flag="--variables"
    )

    def problems(self) -> list[str]:
        """What is contradictory in these options, one sentence each."""
        found = []
        if self.n_users * self.n_items > MAX_PAIRS:
            found.append(f"users times items must be at most {MAX_PAIRS}, not {self.n_users * self.n_items}")
        if not 0 <= self.n_known < self.n_users * self.n_items:
            found.append(
                f"known must be below the {self.n_users * self.n_items} pairs of a world, not {self.n_known}"
            )
        if self.n_users * self.n_items * self.n_variables > MAX_NUMBERS:
            found.append(f"users times items times variables must be at most {MAX_NUMBERS}")
        return found


@dataclass(frozen=True, slots=True)
class World:
    """All pairs of a world, each once, in the order in which they are rated: position = time, counted in
    events.

    `user`, `item`: int32 (n_pairs,); `rating`: uint8 (n_pairs,), 1 to 5, as of that time. `user_arrival`
    (n_users,) and `item_arrival` (n_items,): the position before which it does not exist. `variables`:
    float64 (n_pairs, k), four decimals, k = 0 without.
    """

    user: npt.NDArray[np.int32]
    item: npt.NDArray[np.int32]
    rating: npt.NDArray[np.uint8]
    user_arrival: Positions
    item_arrival: Positions
    variables: Floats


def cut_points(noise: float = 0.0, *, with_variables: bool = False) -> Floats:
    """The four scores at which the rating changes: (4,), ascending."""
    moved = SHIFT**2 + 2 * DIMENSION * TURN**2 if with_variables else 0.0
    scores = NormalDist(DIMENSION, math.sqrt(3 * DIMENSION + noise**2 + moved))
    return np.array([scores.inv_cdf(step / len(SCALE)) for step in range(1, len(SCALE))])


def make_world(seed: int, options: WorldOptions) -> World:
    """Draw the world of `seed`, any whole number from 0. 30,000 pairs take 2 to 4 ms."""
    # A stream each: an option that draws more numbers must not shift those of the other parts.
    user_stream, item_stream, late_stream, order_stream, noise_stream, variable_stream = (
        np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(6)
    )
    user_time, item_time = _arrival_times(late_stream, options)
    # Each pair waits an exponential time from the moment it can be rated. As that has no memory, the next
    # event is at any time a uniform draw from the pairs that exist and are unrated: a shuffle, where no user
    # and no item is late.
    ready = np.maximum(user_time[:, None], item_time[None, :]).ravel()
    moment = ready + order_stream.standard_exponential(ready.size)
    order = np.argsort(moment)
    user, item = np.divmod(order.astype(np.int32), np.int32(options.n_items))
    items = item_stream.normal(1.0, 1.0, (options.n_items, DIMENSION))
    score = _scores(user_stream, items, order, options)
    variables = np.empty((score.size, 0))
    if options.n_variables:
        variables, moved = _variables(variable_stream, items, item, options.n_variables)
        score = score + moved
    if options.noise:
        score += options.noise * noise_stream.standard_normal(score.size)
    cuts = cut_points(options.noise, with_variables=bool(options.n_variables))
    rating = (np.searchsorted(cuts, score, side="right") + SCALE[0]).astype(np.uint8)
    clock = moment[order]
    arrivals = np.searchsorted(clock, user_time), np.searchsorted(clock, item_time)
    return World(user, item, rating, *arrivals, variables)


def _variables(
    stream: np.random.Generator, items: Floats, item: npt.NDArray[np.int32], k: int
) -> tuple[Floats, Floats]:
    """The numbers beside each event, (n, k), and what they add to its score, (n,)."""
    direction = stream.standard_normal(k)
    shift = SHIFT * direction / np.linalg.norm(direction)
    turn = stream.normal(0.0, TURN / math.sqrt(k), (DIMENSION, k))
    # What is played is what is sent: four decimals.
    variables = np.round(stream.standard_normal((item.size, k)), 4)
    # As `_products`: the same bits on every machine.
    by_item = np.einsum("id,dk->ik", items, turn) + shift
    moved: Floats = np.einsum("nk,nk->n", variables, by_item[item])
    return variables, moved


def _scores(
    user_stream: np.random.Generator, items: Floats, order: Positions, options: WorldOptions
) -> Floats:
    """The noiseless score of each event, (n_pairs,), but for its variables. `order`: the pair of each event,
    as `user * n_items + item`.
    """
    now, later = user_stream.standard_normal((2, options.n_users, DIMENSION))
    if not options.drift:
        scores: Floats = _products(1.0 + now, items)[order]
        return scores
    # A taste turns in the plane of two standard normal draws, 1 + cos(a) x + sin(a) y: it is N(1, 1) at each
    # moment, so ratings keep their distribution while old ones slowly lose their meaning.
    angle = (options.drift / DRIFT_EVENTS) * np.arange(order.size)
    still, now_score, later_score = (
        _products(part, items)[order] for part in (np.ones_like(now), now, later)
    )
    drifting: Floats = still + np.cos(angle) * now_score + np.sin(angle) * later_score
    return drifting


def _products(users: Floats, items: Floats) -> Floats:
    # Not a BLAS product: its last bits differ between machines, and a seed shall mean the same world on all.
    products: Floats = np.einsum("ud,id->ui", users, items).ravel()
    return products


def _arrival_times(stream: np.random.Generator, options: WorldOptions) -> tuple[Floats, Floats]:
    """When each user (n_users,) and each item (n_items,) begins to exist, on the clock of the exponential
    waits.
    """
    times = (np.zeros(options.n_users), np.zeros(options.n_items))
    arrivals: list[tuple[float, int, int]] = []
    for side, share in enumerate((options.late_users, options.late_items)):
        n_rows = times[side].size
        # At least one exists from the start, or there would be no pair to begin with.
        late = stream.permutation(n_rows)[: min(round(share * n_rows), n_rows - 1)]
        after = options.n_known * stream.random(late.size)
        after[::2] = options.n_known + COURSE_STEPS * stream.random(after[::2].size)
        arrivals.extend((event, side, row) for event, row in zip(after.tolist(), late.tolist(), strict=True))
    present = [times[side].size - sum(late == side for _, late, _ in arrivals) for side in (0, 1)]
    # Arrivals are drawn as counts of events; the clock reaches a count where that many events are expected.
    unrated = float(present[0] * present[1])
    clock = events = 0.0
    for event, side, row in sorted(arrivals):
        # With `unrated` waiting pairs, events come until exp(-dt) of them are left; 0.99 keeps a world that
        # would run dry before the next arrival going.
        gone = min((event - events) / unrated, 0.99)
        clock -= math.log1p(-gone)
        times[side][row] = clock
        unrated = unrated * (1.0 - gone) + present[1 - side]
        present[side] += 1
        events = event
    return times
