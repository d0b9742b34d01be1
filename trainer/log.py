"""Log lines with stable keys: `event key=value ...`. Invariant: nothing that names a user is logged at
INFO or above.
"""

import json
import logging
import re
import threading
import time
from dataclasses import dataclass

_PLAIN = re.compile(r"[A-Za-z0-9_.:/+-]+")

LOGGER = logging.getLogger("trainer")


@dataclass(frozen=True, slots=True)
class Logged:
    """How often a line of one name was logged, and when last, in seconds since 1970."""

    count: int
    at: float


_logged: dict[str, Logged] = {}
# Threads log, too.
_counting = threading.Lock()


def logged() -> dict[str, Logged]:
    """Return what this process has logged so far, by name; names are few, as the code has them."""
    with _counting:
        return dict(_logged)


def event(name: str, **fields: object) -> None:
    """Log something that happened."""
    _count(name)
    LOGGER.info("%s", line(name, fields), extra=_given(name, fields))


def warning(name: str, **fields: object) -> None:
    """Log something that a person may want to look at; the trainer goes on."""
    _count(name)
    LOGGER.warning("%s", line(name, fields), extra=_given(name, fields))


def unexpected(name: str, exc: BaseException, **fields: object) -> None:
    """Log an error that was not expected, with its traceback."""
    _count(name)
    fields |= {"error": repr(exc)}
    LOGGER.error("%s", line(name, fields), exc_info=exc, extra=_given(name, fields))


def _given(name: str, fields: dict[str, object]) -> dict[str, object]:
    return {"event": name, "fields": {key: value for key, value in fields.items() if value is not None}}


def _count(name: str) -> None:
    # Whether or not the level lets the line through: what is watched does not depend on it.
    with _counting:
        before = _logged.get(name)
        _logged[name] = Logged(1 if before is None else before.count + 1, time.time())


def line(name: str, fields: dict[str, object]) -> str:
    """Return the text of a log line; values with blanks in them are quoted as in JSON."""
    return " ".join([name, *(f"{key}={_value(value)}" for key, value in fields.items() if value is not None)])


def _value(value: object) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if _PLAIN.fullmatch(text) else json.dumps(text)
