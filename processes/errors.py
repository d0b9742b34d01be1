"""What can go wrong with a child, and what ends a command early, split by what the person should do."""

import re
from collections.abc import Sequence

# The trainer's line begins so when a person must decide about stored data: the rest of a stack goes on
# without it.
DATA_REFUSED = "the archive is left as it is"


class ChildEndedError(Exception):
    """The child ended, or was not ready in time, before it was of use. `code` is None for the latter."""

    def __init__(self, name: str, code: int | None, last_line: str) -> None:
        super().__init__(f"{name}: {last_line or 'ended without a word'}")
        self.name = name
        self.code = code
        self.last_line = last_line


class CannotStartError(Exception):
    """A person must change something first: exit code 2. The message is one line that says what to do."""


class StackFailedError(Exception):
    """A part kept failing after the stack was up: exit code 1. The message is one line that names its log."""


_KINDS = re.compile(r"`([^`]*)`")
# Plain words for the names of types in msgspec's messages.
_WORDS = {
    "float": "a number",
    "int": "a whole number",
    "str": "text",
    "bool": "true or false",
    "array": "a list",
    "object": "an object",
}


def in_plain_words(text: str) -> str:
    """Return a message of msgspec without the names of Python: "must be a number or null, not text"."""
    if text.startswith("Expected `"):
        # Beside a whole number, "a number" would not say what is wrong.
        text = text.replace("Expected", "must be", 1).replace(
            ", got `float`", ", not a number with a decimal point"
        )
        text = _KINDS.sub(lambda found: _any_of(found[1].split(" | ")), text).replace(", got ", ", not ")
    return text[:1].lower() + text[1:]


def _any_of(kinds: Sequence[str]) -> str:
    *others, last = (_WORDS.get(kind, kind) for kind in kinds)
    return f"{', '.join(others)} or {last}" if others else last
