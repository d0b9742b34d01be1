"""Fixes types of attributes that a call uses first. Invariant: a value is stored after its type is held."""

import asyncio
from collections.abc import Callable, Mapping
from typing import TypeVar

from featurestore.catalogue.schema import MOST_NAME_BYTES, AttributeLeaving, Kind, SchemaChanged, SchemaFull
from featurestore.errors import StoreUnavailable
from featurestore.store import Store
from service.catalogue.parsing import Types
from service.http.problems import Problem

# As often other calls may fix the types of the same attributes in between.
_ATTEMPTS = 4
T = TypeVar("T")


async def with_types(store: Store, kind: Kind, make: Callable[[Types], T], *, off_loop: bool = False) -> T:
    """Return what `make` makes by the types of attributes, to which it adds those that it uses first; all are
    fixed by then. It is made again where another call has just fixed one otherwise. `off_loop`: in a thread.

    Raises what `make` raises, `invalid_body` where there are too many types, `attribute_in_use`,
    `StoreUnavailable`.
    """
    for _ in range(_ATTEMPTS):
        held = await store.catalogue.schema.types(kind)
        types = dict(held)
        made = await asyncio.to_thread(make, types) if off_loop else make(types)
        new = {name: each for name, each in types.items() if name not in held}
        if await _are_held(store, {kind: new}):
            return made
    raise StoreUnavailable("others are changing the schema", 0.1)


async def hold_told(store: Store, told: Mapping[Kind, Types]) -> None:
    """Fix all types that were told, or none. Raises `invalid_body` for a name that is too long, one that has
    another type since its first use, and where there are too many; `attribute_in_use`, `StoreUnavailable`.
    """
    for _ in range(_ATTEMPTS):
        for kind, types in told.items():
            held = await store.catalogue.schema.types(kind)
            for name, each in types.items():
                field = f"{kind}.{name[:MOST_NAME_BYTES]}"
                if not 0 < len(name.encode()) <= MOST_NAME_BYTES:
                    detail = f"a name must have 1 to {MOST_NAME_BYTES} bytes"
                    raise Problem("invalid_body", detail, field=field)
                if held.get(name, each) != each:
                    detail = f"{name} is of type {held[name]} since its first use, not {each}"
                    raise Problem("invalid_body", detail, field=field)
        if await _are_held(store, told):
            return
    raise StoreUnavailable("others are changing the schema", 0.1)


async def _are_held(store: Store, types: Mapping[Kind, Types]) -> bool:
    """Fix types, all or none; return False where another call has just fixed one otherwise: look again."""
    try:
        await store.catalogue.schema.hold_all(types)
    except (AttributeLeaving, SchemaFull) as exc:
        code = "attribute_in_use" if isinstance(exc, AttributeLeaving) else "invalid_body"
        raise Problem(code, str(exc), field="attributes") from exc
    except SchemaChanged:
        return False
    return True
