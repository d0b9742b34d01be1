"""Fixes types of attributes that a call uses first. Invariant: a value is stored after its type is held."""

from collections.abc import Mapping

from featurestore.catalogue.item import AttributeType
from featurestore.catalogue.schema import Kind, SchemaChanged, SchemaFull
from featurestore.store import Store
from service.catalogue.parsing import Types
from service.http.problems import Problem

# As often other calls may fix the types of the same attributes in between.
ATTEMPTS = 4


async def held_types(store: Store, kind: Kind) -> Types:
    """Return the types of attributes that are fixed."""
    return await store.catalogue.schema.types(kind)


async def hold(store: Store, kind: Kind, held: Types, types: Mapping[str, AttributeType]) -> bool:
    """Fix those `types` that were not `held`; False where another call has just fixed one otherwise: look
    again. Raises `invalid_body` where there are too many.
    """
    new = {name: each for name, each in types.items() if name not in held}
    try:
        await store.catalogue.schema.hold(kind, new)
    except SchemaFull as exc:
        raise Problem("invalid_body", str(exc), field="attributes") from exc
    except SchemaChanged:
        return False
    return True
