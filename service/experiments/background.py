"""Steps of work beside the answers. Invariant: no failure of a step ends the loop that makes it."""

import logging
import time
from collections.abc import Awaitable

from featurestore.errors import StoreError, StoreUnavailable
from service.metrics import Counts

log = logging.getLogger("foldin.service")

# Steps come each second or more often: the same failure is told so seldom that it does not fill a log.
_SAY_AGAIN_S = 60.0


class BackgroundSteps:
    """The steps of one loop. `work`: what a log calls it."""

    def __init__(self, work: str, counts: Counts) -> None:
        self.work = work
        self._counts = counts
        self._said: tuple[str, float] = ("", 0.0)

    async def make(self, step: Awaitable[None]) -> None:
        """Await a step; log why it fails, and count what is a defect."""
        try:
            await step
        except StoreUnavailable:
            # The follower says so.
            pass
        except StoreError as exc:
            if self._is_news(exc):
                log.warning("fails work=%r reason=%s", self.work, exc)
        except Exception as exc:  # the edge of the loop: were it to end, nothing would be stored any more
            self._counts.exceptions += 1
            if self._is_news(exc):
                log.exception("fails work=%r", self.work)

    def _is_news(self, failure: Exception) -> bool:
        text, now = repr(failure), time.monotonic()
        before, at = self._said
        if text == before and now - at < _SAY_AGAIN_S:
            return False
        self._said = text, now
        return True
