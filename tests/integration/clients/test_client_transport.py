"""What the client sends again, what it never does, and what it makes of odd answers.

At a server that the test writes, as a real service does not break off where it should; odd ids at a real one.
"""

import asyncio
import contextlib
import logging
import math
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import AsyncMock

import pytest

from foldin_client import AsyncClient, Client, errors, models, problems
from foldin_client.rows import MAX_ROWS
from foldin_client.wire import retry_after
from tests.support.scripted import listening

OK = b'{"accepted":%d,"generation":1}'
LOST = None  # the request is read, and the connection is cut


def answer(status: int, body: bytes, *headers: str, kind: str = "application/json") -> bytes:
    lines = [f"HTTP/1.1 {status} X", f"Content-Type: {kind}", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def refusal(status: int, code: str, *headers: str, more: str = "") -> bytes:
    body = f'{{"code":"{code}","detail":"no","request_id":"r1","status":{status}{more}}}'.encode()
    return answer(status, body, *headers, kind="application/problem+json")


@dataclass(slots=True)
class Scripted:
    """Answers requests in turn by what stands in `answers`, the last for ever; keeps what it was asked."""

    answers: list[bytes | None]
    asked: list[tuple[str, bytes]] = field(default_factory=list)
    heads: list[str] = field(default_factory=list)
    url: str = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            size = sum(int(x[15:]) for x in head.lower().split("\r\n") if x[:15] == "content-length:")
            self.asked.append((head.split("\r\n")[0].rsplit(" ", 1)[0], await reader.readexactly(size)))
            self.heads.append(head)
            told = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
            if told is LOST:
                break
            writer.write(told)


@contextlib.asynccontextmanager
async def scripted(*answers: bytes | None) -> AsyncIterator[Scripted]:
    script = Scripted(list(answers))
    async with listening(script.serve) as port:
        script.url = f"http://127.0.0.1:{port}"
        yield script


RATING = models.RatingIn(user_id="ann", item_id="dune", rating=5)
VIEW = models.EventIn(user_id="ann", item_id="dune", type="impression")


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    found: list[float] = []
    monkeypatch.setattr("stamina._core._smart_sleep", AsyncMock(side_effect=found.append))
    return found


async def test_a_busy_service_is_asked_again_when_it_says(pauses: list[float]) -> None:
    busy = refusal(503, "store_unavailable", "Retry-After: 3")
    async with scripted(busy, answer(200, OK % 1)) as script, AsyncClient(script.url) as foldin:
        assert (await foldin.rate(RATING)).accepted == 1
    assert ([asked for asked, _ in script.asked], 3 <= pauses[0] <= 4) == (["POST /ratings"] * 2, True)
    # What takes longer than one waits is told at once.
    busy = refusal(429, "quota_exceeded", "Retry-After: 3600", more=',"quota":"ratings"')
    async with scripted(busy) as script, AsyncClient(script.url, retry_s=5.0) as foldin:
        with pytest.raises(problems.QuotaExceededError) as caught:
            await foldin.rate(RATING)
    assert (len(script.asked), caught.value.retry_after_s) == (1, 3600.0)
    assert (caught.value.more, isinstance(caught.value, errors.BusyError)) == ({"quota": "ratings"}, True)


@pytest.mark.parametrize("lost", [LOST, refusal(503, "busy", "Retry-After: 0"), refusal(502, "")])
async def test_what_would_count_twice_is_never_sent_twice(lost: bytes | None) -> None:
    """The service may have acted: an event, a key, a training or a list that records what it shows."""
    calls: list[Callable[[AsyncClient], Any]] = [
        *(lambda foldin: foldin.post_events(VIEW), lambda foldin: foldin.train()),
        lambda foldin: foldin.add_key(name="shop", role="read"),
        lambda foldin: foldin.recommend("ann", impressions=True),
        lambda foldin: foldin.recommend_by_rules("ann", impressions=True),
    ]
    for call in calls:
        async with scripted(lost) as script, AsyncClient(script.url) as foldin:
            with pytest.raises((errors.NoAnswerError, errors.BusyError)) as caught:
                await call(foldin)
        assert (len(script.asked), caught.value.attempts) == (1, 1), script.asked


async def test_what_was_surely_not_done_or_does_no_harm_is_sent_again() -> None:
    for status, code in ((503, "overloaded"), (429, "stream_full"), (429, "quota_exceeded")):
        script_of = scripted(refusal(status, code, "Retry-After: 0"), answer(200, OK % 1))
        async with script_of as script, AsyncClient(script.url) as foldin:
            assert (await foldin.post_events(VIEW)).accepted == 1
        assert len(script.asked) == 2
    async with scripted(LOST, LOST, answer(200, OK % 1)) as script, AsyncClient(script.url) as foldin:
        assert (await foldin.rate(RATING)).accepted == 1
    assert (len(script.asked), len({body for _, body in script.asked})) == (3, 1)
    # Python prints what a logger without a handler says.
    assert any(isinstance(each, logging.NullHandler) for each in logging.getLogger("stamina").handlers)
    # A second attempt that finds nothing says that it was the second.
    async with scripted(LOST, refusal(404, "unknown_rating")) as script, AsyncClient(script.url) as foldin:
        with pytest.raises(problems.UnknownRatingError) as unknown:
            await foldin.unrate("ann", "dune")
    assert unknown.value.attempts == 2
    # Nothing listens: it was not sent, so that anything is tried again.
    async with AsyncClient(script.url, attempts=2) as foldin:
        with pytest.raises(errors.NoAnswerError) as caught:
            await foldin.post_events(VIEW)
    assert (caught.value.was_sent, caught.value.attempts) == (False, 2)


async def test_long_lists_go_in_calls_of_ten_thousand_and_errors_count_from_their_beginning() -> None:
    rows = [{"user_id": "u", "item_id": number, "rating": 3} for number in range(2 * MAX_ROWS + 1)]
    bad = refusal(422, "invalid_body", more=',"row":7,"field":"rating"')
    async with scripted(answer(200, OK % MAX_ROWS), bad) as script, AsyncClient(script.url) as foldin:
        with pytest.raises(problems.InvalidBodyError) as caught:
            await foldin.rate(iter(rows))
        with pytest.raises(problems.InvalidBodyError) as blank:
            await foldin.rate([b"\n"] * 3 + [b"{}"] * 8)
        script.answers = [answer(200, OK % MAX_ROWS)]
        with pytest.raises(ZeroDivisionError) as stopped:
            await foldin.rate(rows[1 // (MAX_ROWS + 1 - number)] for number in range(MAX_ROWS + 2))
    assert (blank.value.row, blank.value.accepted) == (10, 0)
    assert stopped.value.__notes__ == [f"{MAX_ROWS} rows before were stored"]
    assert [body.count(b"\n") for _, body in script.asked[:2]] == [MAX_ROWS, MAX_ROWS]
    assert (caught.value.accepted, caught.value.row, caught.value.field) == (MAX_ROWS, MAX_ROWS + 7, "rating")
    for wrong in (LOST, answer(200, b"<html>", kind="text/html")):
        async with scripted(answer(200, OK % MAX_ROWS), wrong) as script:
            blocking = Client(script.url, attempts=1)
            with blocking, pytest.raises((errors.NoAnswerError, errors.UnreadableAnswerError)) as failed:
                await asyncio.to_thread(blocking.rate, rows)
        assert failed.value.accepted == MAX_ROWS


async def test_what_is_no_foldin_is_unreadable_and_redirects_are_not_followed() -> None:
    odd = [answer(200, text) for text in (b"<html>", b"[1]", b"\xff\xfe")]
    for told in (*odd, answer(302, b"", "Location: http://example.com/")):
        async with scripted(told) as script, AsyncClient(script.url) as foldin:
            with pytest.raises(errors.UnreadableAnswerError, match="GET http"):
                await foldin.predict("ann", "dune")
        assert len(script.asked) == 1
    # A proxy's page, a code of a later version, and a member that a later service adds.
    page = {status: answer(status, b"<html>sorry", kind="text/html") for status in (404, 401, 418, 500)}
    page[409] = refusal(409, "never_heard_of")
    kinds = {404: "Missing", 401: "KeyRefused", 418: "Refused", 500: "Fault", 409: "Conflict"}
    for status, kind in kinds.items():
        async with scripted(page[status]) as script, AsyncClient(script.url) as foldin:
            with pytest.raises(errors.FoldinError, match=r"sorry|never_heard_of") as caught:
                await foldin.predict("ann", "dune")
        assert type(caught.value).__name__ == f"{kind}Error"
    later = b'{"rating":3,"std":1,"basis":"new word","generation":1,"added":{"x":1}}'
    async with scripted(answer(200, later)) as script, AsyncClient(script.url) as foldin:
        assert (await foldin.predict("ann", "dune")).basis == "new word"


async def test_the_key_goes_along_and_shows_in_no_error() -> None:
    refused = scripted(refusal(401, "unauthorized"))
    async with refused as script, AsyncClient(script.url, "fk_secret") as foldin:
        with pytest.raises(errors.KeyRefusedError) as caught:
            await foldin.predict("ann", "dune")
    assert "\r\nAuthorization: Bearer fk_secret\r\n" in script.heads[0]
    async with scripted(refusal(401, "unauthorized"), LOST) as script:
        address = script.url.replace("//", "//me:fk_%73ecret@")
        async with AsyncClient(address, timeout_s=math.inf, attempts=1) as foldin:
            for kind in (errors.KeyRefusedError, errors.NoAnswerError):
                with pytest.raises(kind, match=script.url) as named:
                    await foldin.predict("ann", "dune")
    assert "\r\nAuthorization: Basic bWU6Zmtfc2VjcmV0\r\n" in script.heads[0]
    for shown in (repr(caught.value), str(named.value), repr(vars(caught.value)), repr(foldin), foldin.url):
        assert "secret" not in shown
    async with scripted(answer(200, OK % 1)) as script:
        foldin = AsyncClient(script.url)

        async def used() -> None:
            async with foldin:
                await foldin.rate(RATING)

        for _ in range(2):  # in a loop of its own each
            await asyncio.to_thread(lambda: asyncio.run(used()))
    for bad in ("", "a b\n", "ключ", " fk"):
        with pytest.raises(ValueError, match="printable"):
            AsyncClient(script.url, bad)
    odd = f"127.0.0.1:8080 ftp://here http:// http://u:fk_secret@here:port http://h:65536 http://{'a' * 64}.b"
    for url in odd.split():
        with pytest.raises(ValueError, match="no address") as wrong:
            Client(url)
        assert "secret" not in str(wrong.value)
    for timeout_s in (0.0, math.nan, 1e10):
        with pytest.raises(ValueError, match="timeout_s"):
            Client("http://here", timeout_s=timeout_s)
    assert retry_after("Wed, 21 Oct 99999999999 07:28:00 GMT") is None
