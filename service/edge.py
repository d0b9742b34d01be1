"""The outermost layer: every request passes here once.

Invariant: whatever happens inside, the client gets one whole answer.

Bounds the requests in flight, answers GET /predict by the short way, turns problems and mistakes into
documents with a request id, and counts. It stands in place of middlewares, of which each would cost every
request a frame.
"""

import asyncio
import logging
import re
import secrets
from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import Any, cast

from aiohttp import web
from aiohttp.http import HttpProcessingError

from featurestore.errors import StoreError
from service.answers import Answer, header_lines, no_content
from service.failures import problem_of
from service.metrics import Snapshot
from service.problems import CONTENT_TYPE, Problem

log = logging.getLogger("foldin.service")

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
Quick = Callable[[str], Awaitable[bytes]]

# What a request id of a client may look like; anything else could break a log line or a header.
_REQUEST_ID = re.compile(r"[A-Za-z0-9._~+/=:@-]{1,128}")
_UNMATCHED = "unmatched"
# Whoever runs the service must see it when it has too much to do.
_ALWAYS = ("/livez", "/readyz", "/metrics")


class Edge:
    """Wraps the application. `quick` gives the body for GET of `quick_route` with a query, and counts what it
    answers.
    """

    def __init__(self, counts: Snapshot, *, quick: Quick, quick_route: str, limit: int) -> None:
        self._counts = counts
        self._quick = quick
        self._quick_route = quick_route
        self._quick_prefix = quick_route + "?"
        self._limit = limit
        self._inner: Handler | None = None
        self.in_flight = 0
        self.draining = False

    def wrap(self, inner: Handler) -> None:
        """Pass on to `inner` what is not answered here."""
        self._inner = inner

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer `request`. Raises nothing but `CancelledError`."""
        self.in_flight += 1
        answer: web.StreamResponse
        try:
            path = request.raw_path
            if not path.startswith(self._quick_prefix) or request.method != "GET":
                answer = await self._routed_answer(request)
            elif self.in_flight > self._limit:
                raise self._overload()
            else:
                answer = quick = Answer(await self._quick(path))
                _echo_id(request, quick)
        except Exception as exc:  # noqa: BLE001 -- the edge: whatever happens, the client gets an answer
            answer = self._failure(exc, request, self._quick_route)
            self._counts.request(self._quick_route, answer.status, 0.0)
        finally:
            self.in_flight -= 1
        if self.draining and isinstance(answer, Answer):
            answer.close_connection()
        return answer

    async def _routed_answer(self, request: web.BaseRequest) -> web.StreamResponse:
        started = perf_counter()
        route = _UNMATCHED
        answer: web.StreamResponse
        try:
            if self._inner is None:
                raise Problem("store_unavailable", "still starting", retry_after_s=1)
            if self.in_flight > self._limit and request.path not in _ALWAYS:
                raise self._overload()
            route = ""
            answer = await self._inner(request)
            if isinstance(answer, Answer):
                _echo_id(request, answer)
        except Exception as exc:  # noqa: BLE001 -- the edge: whatever happens, the client gets an answer
            answer = self._failure(exc, request, route or route_of(request))
        route = route or route_of(request)
        # GET /predict counts itself where a whole turn is counted at once.
        if route != self._quick_route or request.method != "GET" or answer.status != 200:
            self._counts.request(route, answer.status, perf_counter() - started)
        return answer

    def _failure(self, exc: Exception, request: web.BaseRequest, route: str) -> Answer:
        if isinstance(exc, StoreError) and (problem := problem_of(exc)) is not None:
            log.debug("the store could not route=%s reason=%s", route, exc)
            exc = problem
        if isinstance(exc, Problem):
            return problem_answer(exc, request)
        if isinstance(exc, web.HTTPException):
            return http_answer(exc, request)
        self._counts.exceptions += 1
        request_id = request_id_of(request)
        log.error("unexpected request_id=%s route=%s", request_id, route, exc_info=exc)
        problem = Problem("internal_error", "the log of the service has the cause under the request id")
        return problem_answer(problem, request, request_id)

    def refused_connection(self, most: int) -> bytes:
        """The whole answer to a connection beyond `most`; it is counted."""
        self._counts.overloads += 1
        problem = Problem("overloaded", f"{most} connections are open", retry_after_s=1)
        request_id = secrets.token_hex(8)
        body = problem.document(request_id)
        fields = header_lines(
            {
                "Content-Type": CONTENT_TYPE,
                "Content-Length": str(len(body)),
                **problem.headers,
                "X-Request-ID": request_id,
                "Connection": "close",
            }
        )
        return b"HTTP/1.1 503 Service Unavailable\r\n%b\r\n%b" % (fields, body)

    def _overload(self) -> Problem:
        self._counts.overloads += 1
        return Problem("overloaded", f"{self._limit} requests are in flight", retry_after_s=1)


def _echo_id(request: web.BaseRequest, answer: Answer) -> None:
    given = request.headers.get("X-Request-ID")
    if given is not None and _REQUEST_ID.fullmatch(given):
        answer.fields += b"X-Request-ID: %b\r\n" % given.encode("ascii")


def request_id_of(request: web.BaseRequest) -> str:
    """The request id that the client sent, if it is usable, or a new one."""
    given = request.headers.get("X-Request-ID")
    return given if given is not None and _REQUEST_ID.fullmatch(given) else secrets.token_hex(8)


def route_of(request: web.BaseRequest) -> str:
    """The route as it was registered: a label of bounded variety."""
    if isinstance(request, web.Request) and (resource := request.match_info.route.resource) is not None:
        return resource.canonical
    return _UNMATCHED


def problem_answer(problem: Problem, request: web.BaseRequest, request_id: str | None = None) -> Answer:
    """`problem` as an answer."""
    request_id = request_id or request_id_of(request)
    fields = header_lines({**problem.headers, "X-Request-ID": request_id})
    return Answer(problem.document(request_id), problem.status, CONTENT_TYPE, fields)


def http_answer(exc: web.HTTPException, request: web.BaseRequest) -> Answer:
    """What the router raises, in the form of everything else."""
    if isinstance(exc, web.HTTPMethodNotAllowed):
        allow = {"Allow": ", ".join(sorted({*exc.allowed_methods, "OPTIONS"}))}
        if request.method == "OPTIONS":
            return no_content(header_lines(allow))
        detail = f"{request.path} answers to {allow['Allow']}"
        # The method is the client's text; the document only has what is known here.
        return problem_answer(Problem("method_not_allowed", detail, headers=allow), request)
    if isinstance(exc, web.HTTPNotFound):
        return problem_answer(Problem("not_found", "see /docs for what there is"), request)
    if isinstance(exc, web.HTTPRequestEntityTooLarge):
        return problem_answer(Problem("body_too_large", "the body is too large"), request)
    detail = f"{exc.status} {exc.reason}"
    return problem_answer(Problem("malformed_request", detail), request)


class EdgeProtocol(web.RequestHandler):
    """A connection. What is no HTTP at all gets a problem document too, and no traceback in the log."""

    __slots__ = ()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """The answer to a request that could not be read."""
        if isinstance(exc, HttpProcessingError):
            detail = " ".join((message or exc.message).split())[:200]
            answer = problem_answer(Problem("malformed_request", detail or "not HTTP"), request)
            answer.close_connection()
            return answer
        return super().handle_error(request, status, exc, message)


class _Refusal(asyncio.Protocol):
    """A connection beyond the limit: it is told so at once, whatever it sends, and closed."""

    def __init__(self, answer: bytes) -> None:
        self._answer = answer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Answer and close."""
        if isinstance(transport, asyncio.WriteTransport):
            transport.write(self._answer)
        transport.close()


class EdgeServer(web.Server):
    """Makes an `EdgeProtocol` a connection, up to `most` of them."""

    def __init__(
        self, template: web.Server, handler: Handler, limits: dict[str, Any], *, edge: Edge, most: int
    ) -> None:
        super().__init__(handler, request_factory=template.request_factory)
        self._limits = limits
        self._edge = edge
        self._most = most

    def __call__(self) -> web.RequestHandler:
        """A protocol for a new connection."""
        if len(self.connections) >= self._most:
            # All that the event loop asks of a protocol is there.
            return cast("web.RequestHandler", _Refusal(self._edge.refused_connection(self._most)))
        return EdgeProtocol(self, loop=self._loop, **self._limits)
