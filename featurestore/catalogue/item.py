"""An item of the catalogue. Invariant: its bytes say the type of each attribute, so that a reader needs no
schema.
"""

from collections.abc import Mapping
from typing import Literal

import msgspec

from featurestore.errors import StoreDamaged

AttributeType = Literal["number", "text", "list", "time", "boolean"]


class Time(msgspec.Struct, frozen=True):
    """A moment, in seconds since 1970: a type of its own, so that it is told from a number."""

    seconds: float


AttributeValue = bool | float | str | list[str] | Time
_TYPES: Mapping[type, AttributeType] = {
    bool: "boolean",
    int: "number",
    float: "number",
    str: "text",
    list: "list",
    Time: "time",
}


# Without `gc`: nothing in an item leads back to it, and a catalogue is read a quarter faster.
class CatalogueItem(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """What is known of an item. `available_from` <= t < `available_until`: when it may be shown, in seconds
    since 1970; None for any time. `image`: an address.
    """

    item_id: str
    title: str = ""
    categories: list[str] = msgspec.field(default_factory=list)
    attributes: dict[str, AttributeValue] = msgspec.field(default_factory=dict)
    hidden: bool = False
    available_from: float | None = None
    available_until: float | None = None
    image: str | None = None


_ENCODER = msgspec.json.Encoder()
_DECODER = msgspec.json.Decoder(CatalogueItem)


def type_of(value: AttributeValue) -> AttributeType:
    """Return the type of an attribute's value."""
    return _TYPES[type(value)]


def pack_item(item: CatalogueItem) -> bytes:
    """Return an item as it is stored: JSON."""
    return _ENCODER.encode(item)


def unpack_item(data: bytes, key: str) -> CatalogueItem:
    """Return the item of stored bytes. Raises `StoreDamaged`, which names `key`."""
    try:
        return _DECODER.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError) as exc:
        raise StoreDamaged(key, f"an item of the catalogue cannot be read: {exc}") from exc
