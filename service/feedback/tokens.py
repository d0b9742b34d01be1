"""The `recommendation_id` of an answer: which generation, scenario and arms made it, and when.

Invariant: it can be read without asking anything, and says nothing of the user. It is not signed: who may
send events may say that an item was shown anyway.
"""

import re
import secrets
from collections.abc import Mapping
from typing import NamedTuple

# Of a scenario, an experiment or an arm; no name has a tilde, a colon or a comma.
_NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}"
_TOKEN = re.compile(
    rf"(?P<generation>\d{{1,16}})~(?P<at>\d{{1,12}})~[0-9a-f]{{16}}~(?P<scenario>(?:{_NAME})?)"
    rf"~(?P<arms>(?:{_NAME}:{_NAME}(?:,{_NAME}:{_NAME})?)?)",
    re.ASCII,
)
# A scenario, and the arms of two experiments, at their longest.
MAX_TOKEN = 400
# Two answers of a billion have the same with a chance of 1 to 37.
_RANDOM_BYTES = 8


class Token(NamedTuple):
    """What a `recommendation_id` says. `at`: seconds since 1970; `arms`: arm by experiment."""

    generation: int
    at: float
    scenario: str | None
    arms: Mapping[str, str]


def new_token(generation: int, at: float, scenario: str | None, arms: Mapping[str, str]) -> str:
    """Return the `recommendation_id` of an answer."""
    of_arms = ",".join(f"{experiment}:{arm}" for experiment, arm in arms.items())
    return f"{generation}~{at:.0f}~{secrets.token_hex(_RANDOM_BYTES)}~{scenario or ''}~{of_arms}"


def parse_token(text: str) -> Token | None:
    """Return what a `recommendation_id` says; None of a text that is none."""
    match = _TOKEN.fullmatch(text) if len(text) <= MAX_TOKEN else None
    if match is None:
        return None
    arms = dict(pair.split(":") for pair in match["arms"].split(",") if pair)
    return Token(int(match["generation"]), float(match["at"]), match["scenario"] or None, arms)
