"""What was looked at, what was found, and what to do."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warn", "fail"]
# From well to not.
STATUSES: tuple[Status, ...] = ("ok", "warn", "fail")


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of what was found. `advice`: what to do; empty where all is well."""

    name: str
    status: Status
    found: str
    advice: str = ""


def worst_of(findings: Iterable[Finding]) -> Finding:
    """Return the gravest of the same look at several servers, the first of these."""
    return max(findings, key=lambda each: STATUSES.index(each.status))


def worst(findings: list[Finding]) -> Status:
    """Return the gravest status; `ok` of none."""
    return max((each.status for each in findings), key=STATUSES.index, default="ok")
