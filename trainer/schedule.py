"""When to refit: decided from values alone. Invariant: a request goes first; a failing fit is not tried
without end, refits that were not asked for take no more than their share of the time, and while a person
holds an older generation live nothing is fitted unasked.
"""

from collections import deque
from dataclasses import dataclass, replace
from typing import Literal

from processes.backoff import Backoff
from processes.settings import real, setting, whole

Reason = Literal["requested", "files", "head", "events", "catalogue", "seconds"]

# With fewer new ratings a refit says little that a fold-in does not.
_LEAST_GROWTH = 100
# An import that pauses for less than this has not ended.
_LATELY_S = 2.0
# After so long the first fit begins though an import still runs: lists of a part are better than none.
_LONGEST_IMPORT_S = 600.0


def _per_cent(text: str) -> float:
    return whole(0, 1_000_000)(text) / 100.0


def _share(text: str) -> float:
    return whole(1, 100)(text) / 100.0


@dataclass(frozen=True, slots=True)
class Rules:
    """When to refit unasked.

    After so many `events`, so many `seconds` after the first of them, or when there are more by `growth` (a
    fraction; 0: not for growth) than the last fit knew, or that part of the catalogue's items has changed;
    but not before fits have taken at most a `share` of the time since the last one began.
    """

    events: int = setting(
        5_000, "refit when so many events are new", whole(1), variable="FOLDIN_REFIT_EVENTS"
    )
    seconds: float = setting(
        60.0,
        "refit so many seconds after the first new event",
        real(0.001, 86_400.0, "seconds"),
        variable="FOLDIN_REFIT_SECONDS",
    )
    growth: float = setting(
        0.2,
        "refit when there are so many per cent more events than the last fit knew, and 100 at least, or when "
        "so many per cent of the items of the catalogue have changed since it; 0: not for that",
        _per_cent,
        variable="FOLDIN_REFIT_GROWTH",
        shown="20",
    )
    share: float = setting(
        0.25,
        "refits take so many per cent of the time at most: of a fit of a minute the next begins four minutes "
        "after it did, at 25; one that is asked for begins at once, and so does the first",
        _share,
        variable="FOLDIN_REFIT_SHARE",
        shown="25",
    )


@dataclass(frozen=True, slots=True)
class CatalogueChanges:
    """So many `items`, `of` all in the catalogue, have changed since the newest fit: the first at `first_at`
    and the last at `last_at`, seconds of a monotonic clock; None where none has.
    """

    items: int = 0
    of: int = 0
    first_at: float | None = None
    last_at: float | None = None


@dataclass(frozen=True, slots=True)
class Situation:
    """What is known when the scheduler looks. Times are seconds of one monotonic clock.

    `requested`: whether a command waits for a fit. `fitted_events`: how many of the archived events the live
    fit had learned. `files_missing`: this host does not have the live generation's fit, so that items cannot
    be folded in; `head_missing`: that fit went live before its ranking head. `catalogue`: what has changed
    in it. `importing`: whether an import writes to the store; asked only before the first fit.

    What `Schedule` adds: `new_events`: archived since the snapshot of the newest fit; `first_new_at`: when
    the first of them was. `lately`: how many came in the last seconds. `not_before`: no automatic fit earlier
    than this, after failures; `paced_until`: no refit, for what the last one took.
    """

    now: float
    requested: bool
    held: bool
    fitted_events: int
    files_missing: bool
    head_missing: bool = False
    catalogue: CatalogueChanges = CatalogueChanges()
    importing: bool = False
    new_events: int = 0
    lately: int = 0
    first_new_at: float | None = None
    not_before: float = 0.0
    paced_until: float = 0.0


@dataclass(frozen=True, slots=True)
class Decision:
    """Fit now for a `reason`, or (None) look again after `wait_s` or when something changes."""

    reason: Reason | None
    wait_s: float | None = None


def decide(s: Situation, rules: Rules) -> Decision:
    """Return whether to fit now, and if not, when to look again."""
    # Before all else: a request also lifts the hold, and is not made to wait for failures before it.
    if s.requested:
        return Decision("requested")
    described_at = _described_at(s, rules)
    missing = s.files_missing or s.head_missing
    if s.held or (s.new_events <= 0 and not missing and described_at is None):
        return Decision(None)
    # While an import pours in, a fit would be out of date before it ends, and take a core from it.
    # Of nothing every rating is growth: the first fit comes with the first hundred.
    grown = rules.growth > 0 and s.new_events >= max(_LEAST_GROWTH, rules.growth * s.fitted_events)
    reason: Reason = "seconds"
    due_at = (s.now if s.first_new_at is None else s.first_new_at) + rules.seconds
    if described_at is not None and (s.new_events <= 0 or described_at < due_at):
        reason, due_at = "catalogue", described_at
    if s.files_missing:
        reason, due_at = "files", s.now
    elif s.head_missing and s.lately < rules.events:
        reason, due_at = "head", s.now
    elif (s.new_events >= rules.events or grown) and s.lately < rules.events:
        reason, due_at = "events", s.now
    # Without the files items are not folded in, and before the first fit nothing is.
    paced = s.fitted_events > 0 and not missing
    at = max(due_at, s.not_before, s.paced_until if paced else 0.0)
    # The first fit would know a part of the import, and refits would be due one after the other.
    if s.importing and s.fitted_events <= 0 and not missing:
        at = max(at, (s.now if s.first_new_at is None else s.first_new_at) + _LONGEST_IMPORT_S)
    return Decision(reason) if at <= s.now else Decision(None, at - s.now)


def _described_at(s: Situation, rules: Rules) -> float | None:
    """Return when a fit is due for what has changed in the catalogue; None where that is too little for one.
    A fit takes all items that have changed so far: single ones cause none, however often.
    """
    changed = s.catalogue
    least = max(_LEAST_GROWTH, rules.growth * changed.of)
    if rules.growth <= 0 or s.fitted_events <= 0 or changed.first_at is None or changed.items < least:
        return None
    # While more come in, until they pause; an import without an end is not waited for.
    return min((changed.last_at or changed.first_at) + _LATELY_S, changed.first_at + rules.seconds)


class Schedule:
    """What has been archived since the fit, as far as `look` was called, and how fits went. Knows one epoch
    at a time.
    """

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._epoch = 0
        self._looks: deque[tuple[float, int]] = deque()
        self._backoff = Backoff(2.0, 300.0)
        self._not_before = 0.0
        self._paced_until = 0.0
        self.first_new_at: float | None = None
        # How many events a fit found that say nothing new.
        self.learned_events = 0

    @property
    def failures(self) -> int:
        """How many fits in a row were not published."""
        return self._backoff.failures

    @property
    def lately(self) -> int:
        """How many events came in the last two seconds."""
        return self._looks[-1][1] - self._looks[0][1] if self._looks else 0

    def look(self, found: Situation, epoch: int, archived_events: int) -> Decision:
        """Take note of how many events are archived; return whether to fit now."""
        now = found.now
        if epoch != self._epoch:
            self._epoch = epoch
            self._looks.clear()
            self.first_new_at = None
            self.learned_events = 0
        self._looks.append((now, archived_events))
        while self._looks[0][0] < now - _LATELY_S:
            self._looks.popleft()
        new_events = archived_events - max(found.fitted_events, self.learned_events)
        if new_events > 0 and self.first_new_at is None:
            self.first_new_at = now
        situation = replace(
            found,
            new_events=new_events,
            lately=self.lately,
            first_new_at=self.first_new_at,
            not_before=self._not_before,
            paced_until=self._paced_until,
        )
        return decide(situation, self._rules)

    def ran(self, began: float, ended: float) -> None:
        """Take note of how long a fit has run, whatever came of it."""
        self._paced_until = began + (ended - began) / self._rules.share

    def fitted(self, *, live: bool) -> None:
        """Take note of a fit that was published. `live`: the first new event is among what it has learned."""
        self._backoff.reset()
        self._not_before = 0.0
        if live:
            self.first_new_at = None

    def learned(self, events: int) -> None:
        """Take note that the live fit knows all that so many archived `events` say."""
        self.learned_events, self.first_new_at = events, None
        self._backoff.reset()
        self._not_before = 0.0

    def failed(self, now: float) -> float:
        """Take note of a fit that was not published; return after how many seconds the next one may begin."""
        delay_s = self._backoff.next_s()
        self._not_before = now + delay_s
        return delay_s
