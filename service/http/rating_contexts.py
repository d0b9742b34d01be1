"""Contexts as they are sent, with ratings and with questions, become rows of the store's schema.

Invariant: what cannot be taken is a problem that names the field, and the row where there are rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from msgspec import Meta

from factors import Float32s
from featurestore.ratings.context_schema import (
    MOST_CATEGORIES,
    MOST_CATEGORY_BYTES,
    MOST_FIELDS,
    ContextRefused,
    UnknownContextField,
    Values,
)
from featurestore.ratings.stored_document import Check, StoredContextSchema
from service.http.parsing import Body, Query
from service.http.problems import Problem

_VALUE = {"anyOf": [{"type": "number"}, {"type": "string"}, {"type": "boolean"}, {"type": "null"}]}
# Of any JSON: the schema says what is none of a context, with the name of the field.
Context = Annotated[
    dict[str, Any],
    Meta(
        description="Numbers (a boolean is 1 or 0) and categories (texts of at most "
        f"{MOST_CATEGORY_BYTES} bytes, {MOST_CATEGORIES} a field) by name; null: not given. PUT /schema "
        f"names the fields, {MOST_FIELDS} at most.",
        extra_json_schema={"additionalProperties": _VALUE},
    ),
]
CONTEXT_PROBLEMS = ("invalid_context", "unknown_context_field")
_BODY: Body[dict[str, Any]] = Body(dict[str, Any])


@dataclass(frozen=True, slots=True)
class Given:
    """The contexts of a call, None where one has none. `field`: where in the call they stand; `numbered`:
    whether they are those of rows.
    """

    contexts: Sequence[Values | None]
    field: str = "context"
    numbered: bool = True


def query_context(query: Query) -> Given | None:
    """Return the context in a query. Raises `invalid_parameter`."""
    # Not among the parameters that are described: no schema of a text says which fields a store has.
    raw = query.raw("context")
    if raw is None:
        return None
    try:
        return one_context(_BODY.decode(raw))
    except Problem as problem:
        detail = f"context must be a JSON object: {problem.detail}"
        raise Problem("invalid_parameter", detail, field="context") from None


def one_context(values: Values | None) -> Given | None:
    """Return the context of a whole call, None where it has none."""
    return Given([values], numbered=False) if values else None


def given_contexts(
    contexts: Sequence[Values | None], *, field: str = "context", numbered: bool = True
) -> Given | None:
    """Return the contexts of rows, None where none has any."""
    return Given(contexts, field, numbered) if any(contexts) else None


async def context_rows(
    schema: StoredContextSchema, given: Given | None, *, extend: Check | None = None
) -> Float32s | None:
    """Return contexts as rows (n, k), None where nothing is given. `extend`: of ratings, whose new
    categories are stored when it refuses nothing.

    Raises `invalid_context`, `unknown_context_field`.
    """
    if given is None:
        return None
    try:
        return await schema.rows(given.contexts, extend=extend)
    except ContextRefused as exc:
        code = "unknown_context_field" if isinstance(exc, UnknownContextField) else "invalid_context"
        row = exc.row if given.numbered else None
        raise Problem(code, f"{given.field}: {exc}", field=f"{given.field}.{exc.name}", row=row) from exc
