"""What can go wrong with a call, by what its caller can do about it.

`foldin_client.problems` has an exception for each `code` of the service; each is one of the classes here.
"""

from collections.abc import Mapping
from typing import Any


class FoldinError(Exception):
    """A call failed. `attempts`: how often it was sent. `accepted`: where a list took several calls, rows
    that those before it have stored; whether its own were, too, an error without an answer does not say.

    After the first of several attempts had no answer, a `MissingError` of a DELETE can mean that it was the
    first that has deleted.
    """

    # Both are set by what sends calls.
    attempts: int = 1
    accepted: int = 0


class NoAnswerError(FoldinError):
    """No whole answer came. `was_sent`: where not, the service has surely not acted."""

    def __init__(self, message: str, *, was_sent: bool) -> None:
        super().__init__(message)
        self.was_sent = was_sent


class UnreadableAnswerError(FoldinError):
    """The answer is not what this API gives: another server, or another version, may be there."""

    def __init__(self, message: str, *, status: int) -> None:
        super().__init__(message)
        self.status = status


class ProblemError(FoldinError):
    """The service says why it does not do what was asked (RFC 9457).

    `code` is stable, and empty where a proxy has answered. `field` and `row` say what of the input is to
    blame; `row` counts from 0 over all rows that were given, also where they were sent in several calls, of
    which the first have stored `accepted` rows. `retry_after_s` is None where the answer does not say.
    `more`: what else the problem document has, as `cause` or `quota`.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int,
        code: str = "",
        detail: str = "",
        request_id: str = "",
        field: str | None = None,
        row: int | None = None,
        retry_after_s: float | None = None,
        more: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.detail = detail
        self.request_id = request_id
        self.field = field
        self.row = row
        self.retry_after_s = retry_after_s
        self.more: Mapping[str, Any] = more or {}


class RefusedError(ProblemError):
    """The same call will be refused again."""


class KeyRefusedError(RefusedError):
    """The call needs a key, or one with a larger role."""


class MissingError(RefusedError):
    """What the call is about is not there."""


class ConflictError(RefusedError):
    """The call does not go with what is there, or is under way, now."""


class BusyError(ProblemError):
    """The service has no room now, or waits for another: the same call may be made again later."""


class FaultError(ProblemError):
    """A mistake of the service."""


def class_of(status: int) -> type[ProblemError]:
    """Return the class of the problems of a status."""
    if status in {401, 403}:
        return KeyRefusedError
    # 502 and 504 come of proxies whose service is not up yet; 501 and 505 of what will never do it.
    if status in {408, 429, 502, 503, 504, 507}:
        return BusyError
    if status >= 500:
        return FaultError
    return {404: MissingError, 409: ConflictError}.get(status, RefusedError)
