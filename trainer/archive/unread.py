"""Segments of an epoch that the disk did not give: since when, and when they are waited for no longer.
Invariant: none counts as damaged that could be read within the last ten minutes.
"""

import contextlib
import math
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

from trainer.errors import Named, SegmentDamagedError, SegmentUnreadError

# A share that is mounted anew is back in minutes. After these a segment counts as damaged; its file is kept.
UNREAD_S = 600.0
# A leader looks once a minute. Of files that were not looked at for so long nothing is known in between. From
# the end of a read to the beginning of the next one: a share may take minutes to say that it fails.
_GAP_S = 300.0


@dataclass(slots=True)
class UnreadFiles:
    """Names of an epoch's files, each with when it could not be read for the first and for the last time, by
    the monotonic clock. The process has it, not a term: a file is waited for across terms.
    """

    _noted: dict[str, tuple[float, float]] = field(default_factory=dict)
    # When the last read of any of them failed: those of a round are looked at one after the other.
    _last: float = -math.inf

    @contextlib.contextmanager
    def looking(self) -> Iterator[None]:
        """Take in when a file cannot be read within the block, whose `SegmentUnreadError` passes."""
        began = time.monotonic()
        try:
            yield
        except SegmentUnreadError as exc:
            self._note(exc.path, began)
            raise

    def _note(self, path: Named, began: float) -> None:
        if began - self._last > _GAP_S:
            self._noted.clear()
        now = self._last = time.monotonic()
        since, _ = self._noted.get(path.name, (now, now))
        self._noted[path.name] = (since, now)

    def note(self, path: Named) -> None:
        """Take in that another process could not read a file just now."""
        # How long one is waited for is counted by the looks of this process.
        if path not in self:
            self._note(path, time.monotonic())

    def require_wait(self, exc: SegmentUnreadError) -> SegmentDamagedError:
        """Return that the file of `exc`, which was raised while `looking`, counts as damaged. Raises `exc`
        while it is waited for.
        """
        unread_s = self.seconds().get(exc.path.name, 0.0)
        if unread_s < UNREAD_S:
            raise exc
        return SegmentDamagedError(exc.path, f"could not be read for {unread_s:.0f} s ({exc})")

    def was_read(self, path: Named) -> None:
        """Take in that a file could be read, or is there no more."""
        self._noted.pop(path.name, None)

    def keep(self, names: Collection[str]) -> None:
        """Forget files that are not among these: a person has put them away, or they were replaced."""
        for name in self._noted.keys() - names:
            self._noted.pop(name, None)

    def last_looked_s(self, path: Named) -> float | None:
        """Return how many seconds ago a file could not be read; None where it can be, as far as is known."""
        noted = self._noted.get(path.name)
        return None if noted is None else time.monotonic() - noted[1]

    def seconds(self) -> dict[str, float]:
        """Return the files that cannot be read, each with for how many seconds."""
        now = time.monotonic()
        # Threads add to it.
        return {name: now - since for name, (since, _) in sorted(dict(self._noted).items())}

    def __contains__(self, path: Named) -> bool:
        return path.name in self._noted
