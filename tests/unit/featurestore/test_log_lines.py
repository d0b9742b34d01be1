"""Log lines as JSON: one object a line, whatever is in it."""

import json
import logging

import pytest

from featurestore.telemetry.log_lines import JsonLines
from trainer import log


def lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, object]]:
    """What was logged, as programs read it."""
    texts = [JsonLines().format(record) for record in caplog.records]
    assert not any("\n" in text for text in texts)
    return [json.loads(text) for text in texts]


def test_a_line_of_the_trainer_has_its_event_and_its_fields(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        log.event("fit_published", generation=7, rmse=0.25, why=None, text="two\nlines")
    (line,) = lines(caplog)
    assert line["event"] == "fit_published"
    assert line["fields"] == {"generation": 7, "rmse": 0.25, "text": "two\nlines"}
    assert line["message"] == 'fit_published generation=7 rmse=0.25 text="two\\nlines"'
    assert (line["level"], line["logger"]) == ("INFO", "trainer")
    assert str(line["time"]).endswith("Z")


def test_an_error_has_its_traceback_and_what_was_given_with_it(caplog: pytest.LogCaptureFixture) -> None:
    service = logging.getLogger("foldin.service")
    service.error("it is %s", object, exc_info=ValueError("a\nb"), extra={"request_id": "r"})
    (line,) = lines(caplog)
    assert line["request_id"] == "r"
    assert str(line["error"]).endswith("ValueError: a\nb")
    assert "trace_id" not in line
