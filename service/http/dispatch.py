"""The outermost layer: every request passes here once.

Invariant: whatever happens inside, the client gets one whole answer.

Bounds the requests in flight, answers GET /predict without the router, turns problems and mistakes into
documents with a request id, and counts. It stands in place of middlewares, of which each would cost every
request a frame.
"""

import logging
import re
import secrets
from collections.abc import Awaitable, Callable, Mapping
from time import perf_counter

from aiohttp import web
from aiohttp.http import HttpProcessingError

from featurestore.errors import StoreError
from service.http.problems import CONTENT_TYPE, Problem
from service.http.response import Answer, header_lines, no_content
from service.http.store_failures import problem_of
from service.metrics import Snapshot
from service.micro_batcher import Asker

log = logging.getLogger("foldin.service")

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
Quick = Callable[[str], Awaitable[bytes]]
Enter = Callable[[str, Asker], bool]
Headers = Mapping[str, str]

# What a request id of a client may look like; anything else could break a log line or a header.
_REQUEST_ID = re.compile(r"[A-Za-z0-9._~+/=:@-]{1,128}")
_ID_HEADER = "X-Request-ID"
_UNMATCHED = "unmatched"
# Whoever runs the service must see it when it has too much to do.
_ALWAYS = ("/livez", "/readyz", "/metrics")


class Edge:
    """Wraps the application. `quick` gives the body for GET of `quick_route` with a query, and counts what it
    answers; `enter` does the same for who is told the answer later, where it can.
    """

    def __init__(self, counts: Snapshot, *, quick: Quick, enter: Enter, quick_route: str, limit: int) -> None:
        self._counts = counts
        self._quick = quick
        self._enter = enter
        self._quick_route = quick_route
        self._quick_prefix = quick_route + "?"
        self._limit = limit
        self._inner: Handler | None = None
        self.in_flight = 0
        self.draining = False

    def wrap(self, inner: Handler) -> None:
        """Pass on to `inner` what is not answered here."""
        self._inner = inner

    def enter(self, path: str, asker: Asker) -> bool:
        """Take GET `path` for `asker`, who takes it off `in_flight` when it is told; False leaves it to
        `__call__`.
        """
        if self.draining or self.in_flight >= self._limit or not self._enter(path, asker):
            return False
        self.in_flight += 1
        return True

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
                answer = Answer(await self._quick(path), fields=echoed_id(request.headers))
        except Exception as exc:  # noqa: BLE001 -- the edge: whatever happens, the client gets an answer
            answer = self.failure(exc, request.headers)
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
                answer.fields += echoed_id(request.headers)
        except web.HTTPException as exc:
            answer = http_answer(exc, request)
        except Exception as exc:  # noqa: BLE001 -- the edge: whatever happens, the client gets an answer
            answer = self._failure(exc, request.headers, route or route_of(request))
        route = route or route_of(request)
        # GET /predict counts itself where a whole turn is counted at once.
        if route != self._quick_route or request.method != "GET" or answer.status != 200:
            self._counts.request(route, answer.status, perf_counter() - started)
        return answer

    def failure(self, exc: Exception, headers: Headers) -> Answer:
        """The answer to GET of the quick route with `headers` that failed with `exc`; it is counted."""
        answer = self._failure(exc, headers, self._quick_route)
        self._counts.request(self._quick_route, answer.status, 0.0)
        return answer

    def _failure(self, exc: Exception, headers: Headers, route: str) -> Answer:
        if isinstance(exc, StoreError) and (problem := problem_of(exc)) is not None:
            log.debug("the store could not route=%s reason=%s", route, exc)
            exc = problem
        if isinstance(exc, Problem):
            return problem_answer(exc, headers)
        self._counts.exceptions += 1
        request_id = request_id_of(headers)
        log.error("unexpected request_id=%s route=%s", request_id, route, exc_info=exc)
        problem = Problem("internal_error", "the log of the service has the cause under the request id")
        return problem_answer(problem, headers, request_id)

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


def echoed_id(headers: Headers) -> bytes:
    """The header line that sends back the request id of a request with `headers`; empty without a usable
    one.
    """
    given = headers.get(_ID_HEADER)
    if given is None or not _REQUEST_ID.fullmatch(given):
        return b""
    return b"X-Request-ID: %b\r\n" % given.encode("ascii")


def request_id_of(headers: Headers) -> str:
    """The request id that the client sent, if it is usable, or a new one."""
    given = headers.get(_ID_HEADER)
    return given if given is not None and _REQUEST_ID.fullmatch(given) else secrets.token_hex(8)


def route_of(request: web.BaseRequest) -> str:
    """The route as it was registered: a label of bounded variety."""
    if isinstance(request, web.Request) and (resource := request.match_info.route.resource) is not None:
        return resource.canonical
    return _UNMATCHED


def problem_answer(problem: Problem, headers: Headers, request_id: str | None = None) -> Answer:
    """`problem` as the answer to a request with `headers`."""
    request_id = request_id or request_id_of(headers)
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
        return problem_answer(Problem("method_not_allowed", detail, headers=allow), request.headers)
    if isinstance(exc, web.HTTPNotFound):
        return problem_answer(Problem("not_found", "see /docs for what there is"), request.headers)
    if isinstance(exc, web.HTTPRequestEntityTooLarge):
        return problem_answer(Problem("body_too_large", "the body is too large"), request.headers)
    detail = f"{exc.status} {exc.reason}"
    return problem_answer(Problem("malformed_request", detail), request.headers)


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
            answer = problem_answer(Problem("malformed_request", detail or "not HTTP"), request.headers)
            answer.close_connection()
            return answer
        return super().handle_error(request, status, exc, message)
