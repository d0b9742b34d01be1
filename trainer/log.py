"""Log lines with stable keys: `event key=value ...`. Invariant: nothing that names a user is logged at
INFO or above.
"""

import json
import logging
import re

_PLAIN = re.compile(r"[A-Za-z0-9_.:/+-]+")

LOGGER = logging.getLogger("trainer")


def event(name: str, **fields: object) -> None:
    """Log something that happened."""
    LOGGER.info("%s", line(name, fields))


def warning(name: str, **fields: object) -> None:
    """Log something that a person may want to look at; the trainer goes on."""
    LOGGER.warning("%s", line(name, fields))


def unexpected(name: str, exc: BaseException, **fields: object) -> None:
    """Log an error that was not expected, with its traceback."""
    LOGGER.error("%s", line(name, fields | {"error": repr(exc)}), exc_info=exc)


def line(name: str, fields: dict[str, object]) -> str:
    """Return the text of a log line; values with blanks in them are quoted as in JSON."""
    return " ".join([name, *(f"{key}={_value(value)}" for key, value in fields.items() if value is not None)])


def _value(value: object) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if _PLAIN.fullmatch(text) else json.dumps(text)


def configure(level: str) -> None:
    """Send log lines to standard error."""
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s %(message)s")
