"""Calls of the API, each written to a log when it is sent and when it is answered, with times.

Invariant: an answer of which a client could make no sense (an unknown status, a 5xx without a code) is a
violation.
"""

import asyncio
import json
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from torture.report import Report

# What a fault holds up longest; then the client gives up, and the call may have happened.
TIMEOUT_S = 12.0
# Past the minute in which the service answers a POST /train that has not ended.
TRAIN_S = 70.0
# Answers that say: not now. With a code, and Retry-After.
_LATER = {429, 503, 504, 507}
# What else a call of its kind may be told.
_TOLD = {404: {"unknown_user", "unknown_rating", "unknown_item", "unknown_generation", "unknown_receipt"}}
_TOLD_TRAINING = {409: {"train_in_progress"}, 422: {"training_refused"}}


@dataclass(frozen=True, slots=True)
class Reply:
    """What came of a call. `status` 0: nothing; `began`, `ended`: by the loop's clock."""

    status: int
    body: Any
    began: float
    ended: float

    @property
    def ok(self) -> bool:
        """Whether it was done."""
        return 200 <= self.status < 300

    @property
    def degraded(self) -> bool:
        """Whether it says itself that it may lack what came last."""
        return isinstance(self.body, dict) and bool(self.body.get("degraded"))


def open_session() -> aiohttp.ClientSession:
    """Return a session whose calls are one request each, on a connection of its own."""
    session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, force_close=True))
    # Else a DELETE whose connection breaks is sent a second time, which is told of what the first has done.
    session._retry_connection = False  # noqa: SLF001 - as aiohttp's own test client does: there is no option
    return session


class Caller:
    """Calls the replicas at `urls`. `in_flight`: how many calls of each kind are under way."""

    def __init__(self, session: aiohttp.ClientSession, urls: list[str], log: Path, report: Report) -> None:
        self.in_flight: Counter[str] = Counter()
        self._session = session
        self._urls = urls
        self._log = log.open("a", encoding="utf-8")
        self._report = report
        self._number = 0

    def close(self) -> None:
        """Close the log."""
        self._log.close()

    async def call(
        self,
        kind: str,
        method: str,
        path: str,
        body: Any = None,
        *,
        replica: int = 0,
        timeout_s: float = TIMEOUT_S,
    ) -> Reply:
        """Make a call of a `kind` (for the report) at one replica; never raises for what the service does."""
        loop = asyncio.get_running_loop()
        self._number += 1
        number = self._number
        replica %= len(self._urls)
        # A body of thousands of ratings says no more than its size.
        shown = body if not isinstance(body, dict) or len(body) < 5 else {"size": len(json.dumps(body))}
        self._write(number, "sent", kind=kind, call=f"{method} {path}", replica=replica, body=shown)
        began = loop.time()
        self.in_flight[kind] += 1
        status, found, says_when = 0, None, False
        try:
            found_type = {"Content-Type": "application/json"} if method == "POST" else {}
            async with self._session.request(
                *(method, self._urls[replica] + path),
                data=None if body is None else json.dumps(body),
                headers=found_type,
                timeout=aiohttp.ClientTimeout(total=timeout_s),
            ) as response:
                data = await response.read()
                status, found = response.status, _decoded(data)
                says_when = response.headers.get("Retry-After", "").isdecimal()
        except (aiohttp.ClientError, TimeoutError) as exc:
            found = repr(exc)
        finally:
            self.in_flight[kind] -= 1
        reply = Reply(status, found, began, loop.time())
        self._write(number, "told", status=status, body=found)
        self._report.called(kind, status)
        self._judge(number, kind, method, path, reply, says_when=says_when)
        return reply

    def _judge(
        self, number: int, kind: str, method: str, path: str, reply: Reply, *, says_when: bool
    ) -> None:
        self._report.checked("clear answers")
        code = reply.body.get("code") if isinstance(reply.body, dict) else None
        told = _TOLD_TRAINING if path == "/train" else _TOLD
        if (
            reply.status == 0
            or (reply.ok and isinstance(reply.body, dict))
            or (reply.status in _LATER and code and says_when)
        ):
            return
        if code not in told.get(reply.status, set()):
            what = f"{method} {path} was answered {reply.status}: {str(reply.body)[:200]}"
            self._report.violated("clear answers", f"call {number} ({kind}): {what}")

    def _write(self, number: int, event: str, **more: Any) -> None:
        self._log.write(json.dumps({"call": number, "at": round(time.time(), 4), event: more}) + "\n")


def _decoded(data: bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        return data[:200].decode("utf-8", "replace")
