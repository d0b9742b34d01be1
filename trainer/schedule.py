"""When to refit: decided from values alone. Invariant: what was asked for goes first; a failing fit is not
tried without end, and while a person holds an older generation live nothing is fitted unasked.
"""

from dataclasses import dataclass
from typing import Literal

from processes.settings import real, setting, whole

Reason = Literal["asked", "files", "events", "seconds"]


# With fewer new ratings a refit says little that a fold-in does not.
_LEAST_GROWTH = 100


def _per_cent(text: str) -> float:
    return whole(0, 1_000_000)(text) / 100.0


@dataclass(frozen=True, slots=True)
class Rules:
    """When to refit unasked.

    After so many `events`, so many `seconds` after the first of them, or when there are more by `growth` (a
    fraction; 0: not for growth) than the last fit knew.
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
        "refit when there are so many per cent more events than the last fit knew, and 100 at least; "
        "0: not for that",
        _per_cent,
        variable="FOLDIN_REFIT_GROWTH",
        shown="20",
    )


@dataclass(frozen=True, slots=True)
class Situation:
    """What is known when the scheduler looks. Times are seconds of one monotonic clock.

    `new_events`: archived since the snapshot of the newest fit; `first_new_at`: when the first of them was;
    `fitted_events`: how many that fit knew. `lately`: how many came in the last seconds.
    `base_missing`: the files of the live generation are not here, so that items cannot be folded in.
    `not_before`: no automatic fit earlier than this, after failures.
    """

    now: float
    asked: bool
    held: bool
    new_events: int
    fitted_events: int
    lately: int
    first_new_at: float | None
    base_missing: bool
    not_before: float


@dataclass(frozen=True, slots=True)
class Decision:
    """Fit now for a `reason`, or (None) look again after `wait_s` or when something changes."""

    reason: Reason | None
    wait_s: float | None = None


def decide(situation: Situation, rules: Rules) -> Decision:
    """Whether to fit now."""
    if situation.asked:
        return Decision("asked")
    if situation.held:
        return Decision(None)
    reason, due_at = _automatic(situation, rules)
    if due_at is None:
        return Decision(None)
    at = max(due_at, situation.not_before)
    if at <= situation.now:
        return Decision(reason)
    return Decision(None, at - situation.now)


def _automatic(s: Situation, rules: Rules) -> tuple[Reason, float | None]:
    if s.base_missing:
        return "files", s.now
    if s.new_events <= 0:
        return "events", None
    first = s.now if s.first_new_at is None else s.first_new_at
    # While an import pours in, a fit would be out of date before it ends, and take a core from it.
    grows = rules.growth > 0 and s.fitted_events > 0
    grown = grows and s.new_events >= max(_LEAST_GROWTH, rules.growth * s.fitted_events)
    if (s.new_events >= rules.events or grown) and s.lately < rules.events:
        return "events", s.now
    return "seconds", first + rules.seconds
