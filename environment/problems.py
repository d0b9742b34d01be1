"""Errors over HTTP as problem+json (RFC 9457), each with a stable `code` and what to do about it."""

import logging
from http import HTTPStatus

import msgspec
from aiohttp import web
from aiohttp.typedefs import Handler

logger = logging.getLogger(__name__)


class ProblemError(Exception):
    """Answer a request with an error. `members` join the document (RFC 9457, section 3.2)."""

    def __init__(self, status: HTTPStatus, code: str, detail: str, **members: int | str) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.members = members


def problem_response(problem: ProblemError) -> web.Response:
    """Return the answer that describes `problem`."""
    document = {
        "type": "about:blank",
        "title": problem.status.phrase,
        "status": problem.status.value,
        "detail": problem.detail,
        "code": problem.code,
        **problem.members,
    }
    return web.Response(
        status=problem.status, body=msgspec.json.encode(document), content_type="application/problem+json"
    )


@web.middleware
async def problems_middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn every error of a handler, expected or not, into a problem document."""
    try:
        return await handler(request)
    except ProblemError as problem:
        return problem_response(problem)
    except web.HTTPException as error:
        # aiohttp's own, such as an unknown path: its text becomes a document like all others.
        status = HTTPStatus(error.status)
        code = status.phrase.lower().replace(" ", "_")
        response = problem_response(
            ProblemError(status, code, f"{request.method} {request.path}: {status.description}")
        )
        if "Allow" in error.headers:  # RFC 9110 demands it with 405
            response.headers["Allow"] = error.headers["Allow"]
        return response
    except Exception:
        logger.exception("request failed method=%s path=%s", request.method, request.path)
        return problem_response(
            ProblemError(HTTPStatus.INTERNAL_SERVER_ERROR, "internal_error", "This is a bug.")
        )
