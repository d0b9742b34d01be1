"""Log lines of service and trainer, for people or for programs. Invariant: one line an event, in both."""

import json
import logging
import sys
import time

# What people read at a terminal.
TEXT = "%(asctime)s %(levelname)s %(name)s %(message)s"
FORMS = ("text", "json")
# What every record has; the rest is what a call of the log gave with it.
_OF_EACH = {*vars(logging.makeLogRecord({})), "message", "asctime"}


class JsonLines(logging.Formatter):
    """Formats a record as one JSON object: `time` (RFC 3339, UTC), `level`, `logger`, `message`, what was
    given with it, `error` with a traceback, and `trace_id` and `span_id` where it belongs to a trace.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        told = {
            "time": f"{moment}.{int(record.msecs):03d}Z",
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        told |= {name: value for name, value in vars(record).items() if name not in _OF_EACH}
        if record.exc_info:
            told["error"] = self.formatException(record.exc_info)
        return json.dumps(told | _trace(), ensure_ascii=False, default=str)


class TextLines(logging.Formatter):
    """Formats a record as a line of text: the message, and behind it as `name=value` what was given with it
    and is not in the message. A trainer's messages have theirs (`event`, `fields`).
    """

    def __init__(self) -> None:
        super().__init__(TEXT)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - as logging has it
        """Return the line without a traceback."""
        given = [
            f"{name}={json.dumps(value, ensure_ascii=False, default=str)}"
            for name, value in vars(record).items()
            if name not in _OF_EACH and name not in {"event", "fields"} and f"{name}=" not in record.message
        ]
        return " ".join([super().formatMessage(record), *given])


def _trace() -> dict[str, str]:
    # Where it was not imported there is no trace.
    library = sys.modules.get("opentelemetry.trace")
    context = None if library is None else library.get_current_span().get_span_context()
    if context is None or not context.is_valid:
        return {}
    return {"trace_id": f"{context.trace_id:032x}", "span_id": f"{context.span_id:016x}"}


def configure(level: str, form: str) -> None:
    """Send the log lines of this process to standard error, in one of `FORMS`."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines() if form == "json" else TextLines())
    logging.basicConfig(level=level, handlers=[handler])
