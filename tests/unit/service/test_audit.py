"""Strangers who are refused do not fill the disk with lines."""

import logging

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from service.http.audit import STRANGERS_PER_S, Audit, Operation


def test_refused_strangers_have_few_lines_and_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "foldin.audit")
    now = 0.0
    audit = Audit([Operation("POST", "/train")], clock=lambda: now)
    request = make_mocked_request("POST", "/train")
    for _ in range(STRANGERS_PER_S + 7):
        audit.record(request, "/train", web.Response(status=401))
    assert len(caplog.records) == STRANGERS_PER_S
    # What is not refused has its line all the same.
    audit.record(request, "/train", web.Response(status=200))
    now = 1.0
    audit.record(request, "/train", web.Response(status=403))
    told = [record.getMessage() for record in caplog.records[STRANGERS_PER_S:]]
    assert [line.partition(":")[0].partition("=")[0] for line in told] == [
        "key",
        "calls_without_a_line",
        "key",
    ]
    assert told[1].startswith("calls_without_a_line=7:")
