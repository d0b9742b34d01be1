"""The record of every call that operates, refused ones included.

Invariant: one line a call, with the name of the key and never the key; no user id. Of refused calls without a
key that is known there are so many lines a second at most, and one that counts the others: strangers do not
fill the disk.
"""

import ipaddress
import logging
import re
import secrets
import time
from collections.abc import Callable, Iterable

from aiohttp import web

from service.http.access import UNKNOWN, address_of
from service.http.response import Answer

log = logging.getLogger("foldin.audit")

# Under these a handler says what it was asked to do, and the check of keys who asked.
WHAT = web.RequestKey("what", str)
CALLER = web.RequestKey("caller", str)
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
# Lines a second of strangers: 170 MB a day of a worker at most.
STRANGERS_PER_S = 10
_ID_SENT = re.compile(rb"X-Request-ID: ([^\r]*)\r\n")


class Audit:
    """Writes the lines of one worker. `operations`: method and route of calls that are recorded; `proxies`:
    whose `X-Forwarded-For` is believed.
    """

    def __init__(
        self,
        operations: Iterable[tuple[str, str]],
        proxies: Iterable[Network] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._operations = frozenset(operations)
        self._proxies = tuple(proxies)
        self._clock = clock
        # Of this second: lines of strangers, and calls of theirs that have none.
        self._second, self._written, self._left_out = 0, 0, 0

    def record(self, request: web.BaseRequest, route: str, answer: web.StreamResponse | None) -> None:
        """Record a call of `route` if it operates; an `answer` of None stands for one that was cut short.

        An answer without a request id gets one, so that the line can be found from it.
        """
        if (request.method, route) not in self._operations:
            return
        request_id = UNKNOWN
        if isinstance(answer, Answer):
            sent = _ID_SENT.search(answer.fields)
            request_id = sent[1].decode("ascii") if sent else secrets.token_hex(8)
            if sent is None:
                answer.fields += f"X-Request-ID: {request_id}\r\n".encode("ascii")
        if self._is_left_out(request, answer):
            return
        log.info(
            "key=%s call=%s %s client=%s status=%s request_id=%s what=%s",
            request.get(CALLER, UNKNOWN),
            *(request.method, route),
            self.client_of(request.remote, request.headers.getall("X-Forwarded-For", ())),
            "cancelled" if answer is None else answer.status,
            request_id,
            request.get(WHAT, UNKNOWN),
            extra={"request_id": request_id},
        )

    def _is_left_out(self, request: web.BaseRequest, answer: web.StreamResponse | None) -> bool:
        """Say whether a call gets no line, as one of too many that were refused to strangers."""
        if answer is None or answer.status not in (401, 403) or request.get(CALLER, UNKNOWN) != UNKNOWN:
            return False
        second = int(self._clock())
        if second != self._second:
            if self._left_out:
                log.warning("calls_without_a_line=%d: refused, without a key that is known", self._left_out)
            self._second, self._written, self._left_out = second, 0, 0
        if self._written < STRANGERS_PER_S:
            self._written += 1
            return False
        self._left_out += 1
        return True

    def client_of(self, peer: str | None, forwarded: Iterable[str]) -> str:
        """Return the address of the client: the peer of the connection or, where that is a trusted proxy,
        the last address before the proxies. `forwarded`: the lines of `X-Forwarded-For`.
        """
        # A proxy may add a line of its own behind that of the client.
        hops = [hop.strip() for hop in ",".join(forwarded).split(",") if hop.strip()]
        found = peer or UNKNOWN
        # What stands further left is the word of a client.
        while hops and self.trusts(found):
            hop = hops.pop()
            if address_of(hop) is None:
                break
            found = hop
        return found

    def trusts(self, text: str | None) -> bool:
        """Whether this peer is a trusted proxy."""
        address = address_of(text or "")
        return address is not None and any(address in network for network in self._proxies)
