"""How long to wait before trying again. Invariant: never for ever, and never all at once."""

import random
import signal
from collections import deque

# Five ends within a minute are a fault that another start will not cure: a broken disk, a wrong setting.
MAX_FAILURES, FAILURE_WINDOW_S = 5, 60.0
FIRST_PAUSE_S = 0.25  # an end by chance is made good at once
# A store that reads its file back, or a service that waits for it, takes a few seconds: the pauses reach
# that.
MAX_PAUSE_S = 8.0
# A part that worked for so long was well: its next pause is the first again.
STEADY_S = 2.0


class Backoff:
    """Delays that double up to a limit, each drawn from its upper half so that processes spread."""

    def __init__(self, first_s: float, limit_s: float, rng: random.Random | None = None) -> None:
        self._first_s = first_s
        self._limit_s = limit_s
        self._rng = rng or random.Random()  # noqa: S311 - spreads retries, guards nothing
        self.failures = 0

    def next_s(self) -> float:
        """Return the delay after one more failure."""
        whole = doubled(self._first_s, self._limit_s, self.failures)
        self.failures += 1
        return whole * self._rng.uniform(0.5, 1.0)

    def reset(self) -> None:
        """Begin again with the first delay: it worked."""
        self.failures = 0


def doubled(first_s: float, limit_s: float, times: int) -> float:
    """Return `first_s`, doubled so many times, at most `limit_s`."""
    # 2^32 times the shortest delay is past any limit, and the power must stay a number.
    return float(min(limit_s, first_s * 2.0 ** min(times, 32)))


class FailureRecord:
    """Decides after each end of a part how long to wait before its next start, and when to give up.

    A part that was killed from outside (SIGKILL) while it worked has not failed: it is started again without
    limit.
    """

    def __init__(self) -> None:
        self._failures: deque[float] = deque()
        self._short_lives = 0

    def ended(self, now: float, code: int, ready_at: float | None) -> float | None:
        """Return the seconds until the next start, None to give up.

        `ready_at`: since when it worked, None if it never did.
        """
        if ready_at is not None and now - ready_at >= STEADY_S:
            self._short_lives = 0
        self._short_lives += 1
        if ready_at is None or code != -signal.SIGKILL:
            self._failures.append(now)
        while self._failures and self._failures[0] < now - FAILURE_WINDOW_S:
            self._failures.popleft()
        if len(self._failures) >= MAX_FAILURES:
            return None
        return doubled(FIRST_PAUSE_S, MAX_PAUSE_S, self._short_lives - 1)
