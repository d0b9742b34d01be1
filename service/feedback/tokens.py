"""The `recommendation_id` of an answer: which generation, scenario and arm made it, and when.

Invariant: it can be read without asking anything, and says nothing of the user. It is not signed: who may
send events may say that an item was shown anyway.
"""

import re
import secrets
from typing import NamedTuple

# Of a scenario, an experiment or an arm; no name has a tilde or a colon.
_NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}"
_TOKEN = re.compile(
    rf"(?P<generation>\d{{1,16}})~(?P<at>\d{{1,12}})~[0-9a-f]{{16}}~(?P<scenario>(?:{_NAME})?)"
    rf"~(?P<arm>(?:{_NAME}:{_NAME})?)",
    re.ASCII,
)
# A scenario, and the arm of an experiment, at their longest.
MAX_TOKEN = 241
# Two answers of a billion have the same with a chance of 1 to 37.
_RANDOM_BYTES = 8


class Token(NamedTuple):
    """What a `recommendation_id` says. `at`: seconds since 1970; `arm`: experiment and arm."""

    generation: int
    at: float
    scenario: str | None
    arm: tuple[str, str] | None


def new_token(generation: int, at: float, scenario: str | None, arm: tuple[str, str] | None) -> str:
    """Return the `recommendation_id` of an answer."""
    return f"{generation}~{at:.0f}~{secrets.token_hex(_RANDOM_BYTES)}~{scenario or ''}~{':'.join(arm or ())}"


def parse_token(text: str) -> Token | None:
    """Return what a `recommendation_id` says; None of a text that is none."""
    match = _TOKEN.fullmatch(text) if len(text) <= MAX_TOKEN else None
    if match is None:
        return None
    experiment, _, arm = match["arm"].partition(":")
    made = (experiment, arm) if arm else None
    return Token(int(match["generation"]), float(match["at"]), match["scenario"] or None, made)
