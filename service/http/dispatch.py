"""The outermost layer of a worker: every request passes here once.

Invariant: whatever happens inside, the client gets one whole answer, and it is counted.
"""

import asyncio
import logging
import re
import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from time import perf_counter
from typing import TYPE_CHECKING

from aiohttp import hdrs, web

from featurestore.errors import StoreDamaged, StoreError
from service.http.audit import Audit
from service.http.problems import CONTENT_TYPE, Problem, problem_of_store
from service.http.response import Answer, header_lines
from service.metrics import Counts

if TYPE_CHECKING:
    from featurestore.telemetry.tracing import Tracing
    from service.http.access import Access

log = logging.getLogger("foldin.service")

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
Headers = Mapping[str, str]

# Anything else in a client's request id could break a log line or a header.
_REQUEST_ID = re.compile(r"[A-Za-z0-9._~+/=:@-]{1,128}")
ID_HEADER = "X-Request-ID"
# The label of requests whose route is not known; addresses as such are not bounded in number.
UNMATCHED = "unmatched"
# What nginx says of a client that has gone.
_CANCELLED = 499


@dataclass(slots=True)
class Traffic:
    """What a worker has taken on at this moment.

    `draining`: the worker ends, so each answer is the last one on its connection.
    """

    in_flight: int = 0
    connections: int = 0
    draining: bool = False


class Dispatcher:
    """Passes requests to `handler`, which routes them.

    It stands in place of middlewares, of which each would cost every request a frame.
    """

    def __init__(self, handler: Handler, *, counts: Counts, traffic: Traffic, audit: Audit) -> None:
        self._handler = handler
        self._counts = counts
        self._traffic = traffic
        self._audit = audit

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer `request`. Raises nothing but `CancelledError`."""
        began = perf_counter()
        traffic = self._traffic
        traffic.in_flight += 1
        answer: web.StreamResponse
        try:
            answer = await self._handler(request)
            if isinstance(answer, Answer):
                answer.fields += echoed_id(request.headers)
        except web.HTTPException as exc:
            answer = http_answer(exc, request)
        except Exception as exc:  # noqa: BLE001 -- the outermost layer: the client gets an answer
            answer = failure_answer(exc, request.headers, route_of(request), self._counts)
        except asyncio.CancelledError:
            self._audit.record(request, route_of(request), None)
            raise
        finally:
            # The end of the grace period cancels what still runs.
            traffic.in_flight -= 1
        route = route_of(request)
        self._counts.request(route, answer.status, perf_counter() - began)
        self._audit.record(request, route, answer)
        # A client that was told no in place of `100 Continue` may send its body all the same, or the next
        # request: what comes cannot be told apart.
        told_no = answer.status >= HTTPStatus.BAD_REQUEST and hdrs.EXPECT in request.headers
        if (traffic.draining or told_no) and isinstance(answer, Answer):
            answer.close_connection()
        return answer


def traced(dispatcher: Handler, tracing: "Tracing", access: "Access") -> Handler:
    """Return `dispatcher` with a span round each request that it answers, and round what it logs. A call goes
    on with the trace that it brings where `access` knows its key, or asks for none.

    The answer is the same as without it; a span has the route, never the address, which has ids in it.
    """

    async def answered(request: web.BaseRequest) -> web.StreamResponse:
        # Before access is checked, as refusals have spans, too: then the sampler decides.
        is_known = not access.asks or access.key_of(request.headers) is not None
        with tracing.request(request.method, request.headers if is_known else {}) as span:
            status = _CANCELLED
            try:
                answer = await dispatcher(request)
                status = answer.status
                return answer
            finally:
                route = _route_of(request)
                span.update_name(f"{request.method} {route}")
                span.set_attribute("http.route", route)
                span.set_attribute("http.response.status_code", status)
                # The id that leads to the log, where the client gave one.
                if ID_HEADER in request.headers:
                    span.set_attribute("foldin.request_id", request_id_of(request.headers))
                if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
                    tracing.fail(span)

    return answered


def _route_of(request: web.BaseRequest) -> str:
    try:
        return route_of(request)
    except (AssertionError, AttributeError):
        # It was refused before it was routed, and aiohttp asserts that it was.
        return UNMATCHED


def failure_answer(exc: Exception, headers: Headers, route: str, counts: Counts) -> Answer:
    """Return the answer to a request of `route` with `headers` that failed with `exc`."""
    if isinstance(exc, StoreError) and (problem := problem_of_store(exc)) is not None:
        level = logging.ERROR if isinstance(exc, StoreDamaged) else logging.DEBUG
        log.log(level, "the store could not route=%s reason=%s", route, exc)
        exc = problem
    if isinstance(exc, Problem):
        return problem_answer(exc, headers)
    counts.exceptions += 1
    # The client gets no text of ours that might tell of the inside; the id leads to the log.
    request_id = request_id_of(headers)
    told = {"request_id": request_id, "route": route}
    log.error("unexpected request_id=%s route=%s", request_id, route, exc_info=exc, extra=told)
    problem = Problem("internal_error", "the log of the service has the cause under the request id")
    return problem_answer(problem, headers, request_id)


def echoed_id(headers: Headers) -> bytes:
    """Return the header line that sends back the request id in `headers`; empty without a usable one."""
    sent = headers.get(ID_HEADER)
    if sent is None or not _REQUEST_ID.fullmatch(sent):
        return b""
    return b"X-Request-ID: %b\r\n" % sent.encode("ascii")


def request_id_of(headers: Headers) -> str:
    """Return the request id that the client sent, if it is usable, or a new one."""
    sent = headers.get(ID_HEADER)
    return sent if sent is not None and _REQUEST_ID.fullmatch(sent) else secrets.token_hex(8)


def route_of(request: web.BaseRequest) -> str:
    """Return the route as it was registered: a label of bounded variety."""
    if isinstance(request, web.Request) and (resource := request.match_info.route.resource) is not None:
        return resource.canonical
    return UNMATCHED


def problem_answer(problem: Problem, headers: Headers, request_id: str | None = None) -> Answer:
    """Return `problem` as the answer to a request with `headers`."""
    request_id = request_id or request_id_of(headers)
    fields = header_lines({**problem.headers, "X-Request-ID": request_id})
    return Answer(problem.document(request_id), problem.status, CONTENT_TYPE, fields)


def http_answer(exc: web.HTTPException, request: web.BaseRequest) -> Answer:
    """Return what the router raised in the form of every other answer."""
    if isinstance(exc, web.HTTPMethodNotAllowed):
        allow = {"Allow": ", ".join(sorted({*exc.allowed_methods, "OPTIONS"}))}
        if request.method == "OPTIONS":
            return Answer(b"", HTTPStatus.NO_CONTENT, "", header_lines(allow))
        # The method is the client's text; the document only has what is known here.
        detail = f"{request.path} answers to {allow['Allow']}"
        return problem_answer(Problem("method_not_allowed", detail, headers=allow), request.headers)
    if isinstance(exc, web.HTTPNotFound):
        return problem_answer(Problem("not_found", "see /docs for what there is"), request.headers)
    if isinstance(exc, web.HTTPRequestEntityTooLarge):
        return problem_answer(Problem("body_too_large", "the body is too large"), request.headers)
    # An expectation other than 100-continue, for one.
    return problem_answer(Problem("malformed_request", f"{exc.status} {exc.reason}"), request.headers)
