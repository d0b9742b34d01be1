"""Log lines: as JSON, one object a line, and as text; both have what was given with them."""

import json
import logging

import pytest

from featurestore.telemetry.log_lines import JsonLines, TextLines
from trainer import log


def test_a_line_has_its_event_its_fields_and_its_error(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        log.event("fit_published", generation=7, rmse=0.25, why=None, text="two\nlines")
        service, error = logging.getLogger("foldin.service"), ValueError("a\nb")
        service.error("it is %s", object, exc_info=error, extra={"request_id": "r"})
        logging.getLogger("foldin.store").warning("store connection lost", extra={"why": "reset\nby peer"})
        logging.getLogger("foldin").info("request_id=%s", "r", extra={"request_id": "r"})
    lines = [JsonLines().format(record) for record in caplog.records]
    assert not any("\n" in line for line in lines)
    event, failed, *_ = map(json.loads, lines)
    assert event["event"] == "fit_published"
    assert event["fields"] == {"generation": 7, "rmse": 0.25, "text": "two\nlines"}
    assert event["message"] == 'fit_published generation=7 rmse=0.25 text="two\\nlines"'
    assert (event["level"], event["logger"]) == ("INFO", "trainer")
    assert event["time"].endswith("Z")
    assert failed["request_id"] == "r"
    assert failed["error"].endswith("ValueError: a\nb")
    assert "trace_id" not in failed
    texts = [TextLines().format(record) for record in caplog.records]
    assert texts[0].endswith('INFO trainer fit_published generation=7 rmse=0.25 text="two\\nlines"')
    assert texts[2].endswith('WARNING foldin.store store connection lost why="reset\\nby peer"')
    assert texts[3].endswith("INFO foldin request_id=r")
