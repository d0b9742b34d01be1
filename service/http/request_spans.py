"""A span for each request, where traces are sent.

Invariant: the answer is what it is without; a span has the route, never the address, which has ids in it.
Where keys are asked for, a caller without one that is known does not say which calls are traced.
"""

from http import HTTPStatus
from typing import TYPE_CHECKING

from aiohttp import web

from service.http.dispatch import ID_HEADER, UNMATCHED, Handler, request_id_of, route_of

if TYPE_CHECKING:
    from featurestore.telemetry.tracing import Tracing
    from service.http.access import Access

# What nginx says of a client that has gone.
_CANCELLED = 499


def traced(dispatcher: Handler, tracing: "Tracing", access: "Access") -> Handler:
    """Return `dispatcher` with a span round each request that it answers, and round what it logs. A call goes
    on with the trace that it brings where `access` knows its key, or asks for none.
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
