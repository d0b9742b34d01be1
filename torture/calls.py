"""Calls of the API, each written to a log when it is sent and when it is answered, and checked.

Invariant: the log has all that the checks have been told, in its order: `judge_log` finds the same in it.
"""

import asyncio
import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import aiohttp

from processes.errors import CannotStartError
from torture.checks import Call, Checks, Reply, Turn
from torture.report import Report

# What a fault holds up longest; then the client gives up, and the call may have happened.
TIMEOUT_S = 12.0
# Past the minute in which the service answers a POST /train that has not ended.
TRAIN_S = 70.0


def open_session() -> aiohttp.ClientSession:
    """Return a session whose calls are one request each, on a connection of its own."""
    session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, force_close=True))
    # Else a DELETE whose connection breaks is sent a second time, which is told of what the first has done.
    session._retry_connection = False  # noqa: SLF001 - as aiohttp's own test client does: there is no option
    return session


class Caller:
    """Calls the replicas at `urls`. `in_flight`: how many calls of each kind are under way."""

    def __init__(self, session: aiohttp.ClientSession, urls: list[str], log: Path, checks: Checks) -> None:
        self.in_flight: Counter[str] = Counter()
        self._session = session
        self._urls = urls
        self._log = log.open("a", encoding="utf-8")
        self._checks = checks
        self._number = 0
        report = checks.report
        begun = {"seed": report.seed, "kind": report.kind, "began": report.began}
        self._write(0, time.monotonic(), "begun", **begun)

    def close(self) -> None:
        """Close the log."""
        self._log.close()

    def turned(self, turn: Turn) -> None:
        """Note what became of a new history."""
        now = asyncio.get_running_loop().time()
        self._write(0, now, "turned", turn=turn)
        self._checks.turned(turn, now)

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
        call = Call(self._number, kind, method, path, body, replica % len(self._urls))
        # Thousands of ratings of a new history say no more than their size.
        shown = {"size": len(json.dumps(body))} if path == "/train" and body else body
        began = loop.time()
        self._write(
            call.number, began, "sent", kind=kind, method=method, path=path, replica=call.replica, body=shown
        )
        self._checks.sent(call)
        self.in_flight[kind] += 1
        status, found, says_when = 0, None, False
        try:
            found_type = {"Content-Type": "application/json"} if body is not None or method == "POST" else {}
            async with self._session.request(
                *(method, self._urls[call.replica] + path),
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
        reply = Reply(status, found, began, loop.time(), says_when)
        self._write(call.number, reply.ended, "told", status=status, body=found, says_when=says_when)
        self._checks.told(call, reply)
        return reply

    def _write(self, number: int, now: float, event: str, **more: Any) -> None:
        line = {"call": number, "at": round(time.time(), 4), "clock": now, event: more}
        self._log.write(json.dumps(line) + "\n")


def judge_log(log: Path) -> Report:
    """Check the answers of a log again; return what was found. Raises CannotStartError for what is none."""
    now = 0.0
    report = Report(1, clock=lambda: now)
    checks, calls = Checks(report), dict[int, tuple[Call, float]]()
    try:
        with log.open(encoding="utf-8") as lines:
            for text in lines:
                if not text.endswith("\n"):
                    # The run was killed amid this line.
                    break
                match line := json.loads(text):
                    case {"begun": begun, "clock": now}:
                        report = Report(clock=lambda: now, **begun)
                        checks = Checks(report)
                    case {"turned": turned, "clock": now}:
                        checks.turned(turned["turn"], now)
                    case {"sent": sent, "clock": now}:
                        calls[line["call"]] = Call(line["call"], **sent), now
                        checks.sent(calls[line["call"]][0])
                    case {"told": told, "clock": now}:
                        call, began = calls.pop(line["call"])
                        checks.told(call, Reply(began=began, ended=now, **told))
                    case _:
                        raise ValueError(text[:80])
    except (OSError, ValueError, LookupError, TypeError) as exc:
        raise CannotStartError(f"{log} is no log of calls: {exc!r}") from exc
    return report


def _decoded(data: bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        return data[:200].decode("utf-8", "replace")
