"""How far a fit has come, and what each of its phases took. Invariant: one phase at a time, in the order of
`Phase`; a phase ends when the next one begins.
"""

import time
from collections.abc import Callable
from typing import Literal

Phase = Literal["archiving", "loading", "trial", "fitting", "ranking", "publishing"]


class FitProgress:
    """The `phase` of a fit that runs, and how many sweeps of it have ended."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since = clock()
        self.phase: Phase = "archiving"
        self.sweep = 0
        self._seconds: dict[Phase, float] = {}

    def begin(self, phase: Phase) -> None:
        """Take note of the beginning of a phase."""
        now = self._clock()
        self._seconds[self.phase] = self._seconds.get(self.phase, 0.0) + now - self._since
        self.phase, self.sweep, self._since = phase, 0, now

    def seconds(self) -> dict[str, float]:
        """Return what each phase before this one took, and this one so far, as `NAME_s`."""
        now = self._clock()
        known = {**self._seconds, self.phase: self._seconds.get(self.phase, 0.0) + now - self._since}
        return {f"{phase}_s": seconds for phase, seconds in known.items()}
