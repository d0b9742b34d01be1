"""What can go wrong in a call, as problems of RFC 9457 with stable codes.

Invariant: a client can decide by `code` alone. A code, once released, keeps its meaning; texts may change.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from featurestore.errors import (
    EpochBusy,
    EpochGone,
    FullReason,
    GenerationUnknown,
    OffScale,
    RegistryFull,
    StoreChanged,
    StoreDamaged,
    StoreError,
    StoreFull,
    StoreUnavailable,
    StreamFull,
)

CONTENT_TYPE = "application/problem+json"


class Kind(NamedTuple):
    """One code: the status it is answered with and its title."""

    status: int
    title: str


# A test holds the codes against docs/api.md, and the page /docs lists them from the description of the API.
KINDS: Mapping[str, Kind] = {
    "missing_parameter": Kind(400, "A required parameter is missing"),
    "unknown_parameter": Kind(422, "There is no parameter of this name"),
    "invalid_parameter": Kind(400, "A parameter has a value that is not allowed"),
    "malformed_request": Kind(400, "The request is not valid HTTP"),
    "malformed_json": Kind(400, "The body is not valid JSON"),
    "unauthorized": Kind(401, "The call needs a key that is known"),
    "forbidden": Kind(403, "The key does not allow this call"),
    "cross_site": Kind(403, "The call comes from a page of another site"),
    "unknown_user": Kind(404, "No rating of this user is known"),
    "unknown_item": Kind(404, "This item is not known"),
    "unknown_scenario": Kind(404, "There is no scenario of this name"),
    "unknown_key": Kind(404, "There is no key of this name"),
    "unknown_experiment": Kind(404, "There is no experiment of this name"),
    "unknown_rating": Kind(404, "There is no such rating"),
    "unknown_event": Kind(404, "There is no such event"),
    "unknown_event_type": Kind(422, "There is no event type of this name"),
    "unknown_generation": Kind(404, "This generation is not kept"),
    "unknown_receipt": Kind(404, "There is no such receipt"),
    "not_found": Kind(404, "There is nothing at this address"),
    "method_not_allowed": Kind(405, "This address does not answer to this method"),
    "request_timeout": Kind(408, "The request did not arrive in time"),
    "ratings_would_be_lost": Kind(409, "Ratings that came in by other ways would be thrown away"),
    "experiment_exists": Kind(409, "An experiment has this name, or is about the same calls"),
    "key_exists": Kind(409, "A key has this name"),
    "last_operate_key": Kind(409, "Keys would be left of which none may operate"),
    "attribute_in_use": Kind(409, "This attribute is in use, or being deleted"),
    "scale_decided": Kind(409, "The scale of the ratings is decided"),
    "train_in_progress": Kind(409, "A training is under way"),
    "body_too_large": Kind(413, "The body is too large"),
    "unsupported_media_type": Kind(415, "The body has a content type that is not understood"),
    "invalid_body": Kind(422, "The body has a value that is not allowed"),
    "invalid_type": Kind(422, "An event type is not known, or not possible"),
    "invalid_context": Kind(422, "A context has a value that is not allowed"),
    "unknown_context_field": Kind(422, "A context has a field that was not named"),
    "invalid_rule": Kind(422, "A rule has a value that is not allowed"),
    "too_many_rows": Kind(422, "The body has more rows than one call takes"),
    "too_many_scenarios": Kind(422, "There are as many scenarios as there may be"),
    "too_many_experiments": Kind(422, "There are as many experiments as there may be"),
    "too_many_items": Kind(422, "The catalogue is full"),
    "too_many_ratings": Kind(422, "The user has as many ratings as one may have"),
    "training_refused": Kind(422, "These ratings cannot be learned"),
    "quota_exceeded": Kind(429, "The caller has used up its quota"),
    "stream_full": Kind(429, "Ratings arrive faster than they are archived"),
    "internal_error": Kind(500, "The service made a mistake"),
    "store_unavailable": Kind(503, "The feature store does not answer"),
    "data_damaged": Kind(503, "Stored data cannot be read"),
    "no_generation": Kind(503, "No model is live yet"),
    # Never for the ratings, which would be `training_refused`: a fit that was killed, a disk, a new leader.
    "training_failed": Kind(503, "The training failed"),
    "overloaded": Kind(503, "This worker has more of this kind to do than it takes"),
    "training_timeout": Kind(504, "The training did not end in time"),
    "store_full": Kind(507, "The feature store has no memory left"),
    "disk_full": Kind(507, "A disk has no room left"),
    "worker_full": Kind(507, "This replica has no memory left"),
}


FULL: Mapping[FullReason, str] = {
    "store_memory": "the store has no memory left; send the whole call again later",
    "store_disk": "the disk of the store is full; send the whole call again later",
    "archive_disk": "the disk of the archive is full; send the whole call again later",
    "worker_memory": "this replica has no memory left; send the whole call again later, or to another one",
}

_FULL_CODES: Mapping[FullReason, str] = {"store_memory": "store_full", "worker_memory": "worker_full"}

# A person has to act, or a fit of seconds to take its place.
RETRY_DAMAGED_S = 60.0


class Problem(Exception):  # noqa: N818 -- RFC 9457's own word; most are the caller's and no error of this program
    """Ends a request with a problem document. `headers` are added to the answer, `extra` members to the
    document.
    """

    def __init__(
        self,
        code: str,
        detail: str,
        *,
        field: str | None = None,
        row: int | None = None,
        retry_after_s: float | None = None,
        headers: Mapping[str, str] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(detail)
        self.code = code
        self.status, self.title = KINDS[code]
        self.detail = detail
        self.field = field
        self.row = row
        # A copy: a mapping that is a constant of the caller must not get the line below.
        self.headers = dict(headers or {})
        if retry_after_s is not None:
            # Whole seconds by RFC 9110; never 0, which clients take as "at once".
            self.headers["Retry-After"] = str(max(1, round(retry_after_s)))
        self.extra = dict(extra or {})

    def document(self, request_id: str) -> bytes:
        """The JSON body."""
        members: dict[str, Any] = {
            # Relative: behind a proxy the service does not know by which address a client reaches it.
            "type": f"/docs#{self.code}",
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            "code": self.code,
            "request_id": request_id,
        }
        if self.field is not None:
            members["field"] = self.field
        if self.row is not None:
            members["row"] = self.row
        members.update(self.extra)
        return msgspec.json.encode(members)


def problem_of_store(exc: StoreError) -> Problem | None:  # noqa: PLR0911 -- a table
    """Return the problem that `exc` is for a client; None where it is a mistake of this program.

    What may work later says when, by `Retry-After`.
    """
    match exc:
        case StreamFull():
            return Problem("stream_full", str(exc), retry_after_s=exc.retry_after_s)
        case StoreFull():
            code = _FULL_CODES.get(exc.reason, "disk_full")
            return Problem(code, FULL[exc.reason], retry_after_s=exc.retry_after_s)
        case StoreUnavailable():
            # Its text names the address of the store, which is no client's business.
            return Problem("store_unavailable", "try again", retry_after_s=exc.retry_after_s)
        case StoreChanged():
            return Problem(
                "store_unavailable", "the store has changed meanwhile; begin again", retry_after_s=1
            )
        case StoreDamaged():
            # The log has the key: a person has to do something first.
            detail = "what is stored cannot be read; the log of the service says where"
            return Problem("data_damaged", detail, retry_after_s=RETRY_DAMAGED_S)
        case EpochBusy():
            return Problem("train_in_progress", str(exc), retry_after_s=5)
        case EpochGone():
            detail = "the new history was abandoned meanwhile; send it again"
            return Problem("training_failed", detail, retry_after_s=1, extra={"cause": "epoch_gone"})
        case GenerationUnknown():
            return Problem("unknown_generation", str(exc))
        case OffScale():
            return Problem("invalid_body", str(exc))
        case RegistryFull():
            return Problem("too_many_items", str(exc))
        # Anything else is no state of the store that a client could wait for.
        case _:
            return None
