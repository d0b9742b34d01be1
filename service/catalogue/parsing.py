"""What is sent of items and users becomes what is stored. Invariant: nothing behind this module sees a value
of another type than its attribute has, or an item that is larger than one may be.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Self

import msgspec
from msgspec import UNSET, Meta, UnsetType

from featurestore.catalogue.catalogue import MOST_ITEM_BYTES
from featurestore.catalogue.item import AttributeType, AttributeValue, CatalogueItem, pack_item
from featurestore.catalogue.schema import (
    ValueRefused,
    composed,
    new_types,
    parse_time,
    shown,
    shown_time,
    typed,
)
from featurestore.ratings.context_schema import category_name
from service.http.parsing import DescribedId, Rows, body_ids
from service.http.problems import Problem

# So many items take the store about 100 ms (10 us each), in steps of a few milliseconds.
MAX_ROWS = 10_000
# Each is a column in every worker, or the cost of looking one up; more are no description but a document.
MOST_ATTRIBUTES = 64
MOST_CATEGORIES = 64  # as many as an item can be filed under by hand
MOST_TEXT_BYTES = 1_024  # of a title, a category, an address: browsers cut longer ones

_TIME = {"anyOf": [{"type": "number"}, {"type": "string", "format": "date-time"}, {"type": "null"}]}
Moment = Annotated[float | str | None, Meta(extra_json_schema=_TIME)]
# Of any JSON; `typed` says what is none of them.
Sent = Annotated[
    dict[str, Any],
    Meta(
        description="Numbers, texts, lists of texts, times (ISO 8601, or seconds since 1970) and booleans, "
        "by name. The first value of a name fixes its type.",
        extra_json_schema={"maxProperties": MOST_ATTRIBUTES},
    ),
]


class ItemIn(msgspec.Struct, forbid_unknown_fields=True):
    """What is known of an item besides its ratings. It is not hidden where that is left out."""

    title: str = ""
    categories: list[str] = msgspec.field(default_factory=list)
    attributes: Sent = msgspec.field(default_factory=dict)
    hidden: bool | UnsetType = UNSET
    available_from: Moment = None
    available_until: Moment = None
    image: str | None = None


class ItemRowIn(ItemIn, forbid_unknown_fields=True, kw_only=True):
    """The same with the item's id, in a call with several. Where `hidden` is left out an item that is hidden
    stays so. `undelete`: whether one that was deleted comes back.
    """

    item_id: DescribedId
    undelete: bool = False


class UserRowIn(msgspec.Struct, forbid_unknown_fields=True):
    """What is known of a user besides ratings."""

    user_id: DescribedId
    attributes: Sent = msgspec.field(default_factory=dict)


class ItemPatch(msgspec.Struct, forbid_unknown_fields=True):
    """Changes of an item: what is left out stays, an attribute that is null goes."""

    title: str | UnsetType = UNSET
    categories: list[str] | UnsetType = UNSET
    attributes: Sent | UnsetType = UNSET
    hidden: bool | UnsetType = UNSET
    available_from: Moment | UnsetType = UNSET
    available_until: Moment | UnsetType = UNSET
    image: str | UnsetType | None = UNSET


class ItemShown(msgspec.Struct, omit_defaults=True):
    """An item of the catalogue. Times are ISO 8601, in UTC."""

    item_id: str
    title: str = ""
    categories: list[str] = msgspec.field(default_factory=list)
    attributes: dict[str, Any] = msgspec.field(default_factory=dict)
    hidden: bool = False
    available_from: str | None = None
    available_until: str | None = None
    image: str | None = None

    @classmethod
    def of(cls, item: CatalogueItem) -> Self:
        """Return an item as the API shows it."""
        start, end = item.available_from, item.available_until
        return cls(
            item_id=item.item_id,
            title=item.title,
            categories=item.categories,
            attributes=shown_values(item.attributes),
            hidden=item.hidden,
            available_from=None if start is None else shown_time(start),
            available_until=None if end is None else shown_time(end),
            image=item.image,
        )


class ItemLine(ItemShown, omit_defaults=True, kw_only=True):
    """An item of an export. It always says whether it is hidden: a row of POST /items that does not leaves
    that as it is.
    """

    hidden: bool


Types = dict[str, AttributeType]

_ITEMS: Rows[ItemRowIn] = Rows(ItemRowIn, MAX_ROWS)
_USERS: Rows[UserRowIn] = Rows(UserRowIn, MAX_ROWS)


def parse_items(body: bytes | bytearray, *, lines: bool) -> tuple[list[ItemRowIn], list[bytes]]:
    """Return the items in `body` and their ids: one object, an array, or an object a line.

    Raises a `Problem` that names a field, and the first bad row.
    """
    rows, _ = _ITEMS.decode(body, lines=lines)
    return rows, body_ids([row.item_id for row in rows], "item_id")


def parse_users(body: bytes | bytearray, *, lines: bool) -> tuple[list[UserRowIn], list[bytes]]:
    """The same of users."""
    rows, _ = _USERS.decode(body, lines=lines)
    return rows, body_ids([row.user_id for row in rows], "user_id")


def new_items(ids: Sequence[bytes], rows: Sequence[ItemRowIn], types: Types) -> list[CatalogueItem]:
    """Return `new_item` of each."""
    each = enumerate(zip(ids, rows, strict=True))
    return [new_item(item_id, row, types, number) for number, (item_id, row) in each]


def new_users(rows: Sequence[UserRowIn], types: Types) -> list[dict[str, AttributeValue]]:
    """Return the attributes of each user. Raises `invalid_body`, which names the field and the row."""
    found = []
    for number, row in enumerate(rows):
        found.append(values_of(row.attributes, types, number))
        check_size(msgspec.json.encode(found[-1]), "the attributes of a user", number)
    return found


def shown_values(values: Mapping[str, AttributeValue]) -> dict[str, Any]:
    """Return attributes as the API shows them."""
    return {name: shown(value) for name, value in values.items()}


def new_item(item_id: bytes, sent: ItemIn, types: Types, row: int | None = None) -> CatalogueItem:
    """Return the item that was sent. Attributes are read by `types`, and a new one is added there.

    Raises `invalid_body`, which names the field and the `row`.
    """
    start = _moment(sent.available_from, "available_from", row)
    end = _moment(sent.available_until, "available_until", row)
    item = CatalogueItem(
        item_id.decode(),
        composed(sent.title),
        _categories(sent.categories),
        values_of(sent.attributes, types, row),
        sent.hidden is True,
        *(start, end, sent.image),
    )
    _check(item, row)
    return item


def becomes_of_row(item: CatalogueItem, sent: ItemRowIn, before: CatalogueItem | None) -> CatalogueItem:
    """Return what an item becomes by a row of several, of which `item` was made."""
    if sent.hidden is UNSET and before is not None and before.hidden:
        return msgspec.structs.replace(item, hidden=True)
    return item


def patched_item(
    item_id: bytes, before: CatalogueItem | None, sent: ItemPatch, types: Types
) -> CatalogueItem:
    """Return what an item becomes by a patch. Raises as `new_item` does."""
    item = CatalogueItem(item_id.decode()) if before is None else before
    changes: dict[str, Any] = {
        name: value for name in ("hidden", "image") if (value := getattr(sent, name)) is not UNSET
    }
    if sent.title is not UNSET:
        changes["title"] = composed(sent.title)
    if sent.categories is not UNSET:
        changes["categories"] = _categories(sent.categories)
    if sent.attributes is not UNSET:
        changes["attributes"] = patched_values(item.attributes, sent.attributes, types)
    for name in ("available_from", "available_until"):
        if (value := getattr(sent, name)) is not UNSET:
            changes[name] = _moment(value, name, None)
    item = msgspec.structs.replace(item, **changes)
    _check(item, None)
    return item


def values_of(
    sent: Mapping[str, Any], types: Types, row: int | None = None, *, prefix: str = "attributes."
) -> dict[str, AttributeValue]:
    """Return attributes by `types`, to which those of new ones are added. Raises `invalid_body`."""
    try:
        found = {name: typed(name, value, types.get(name)) for name, value in sent.items()}
    except ValueRefused as exc:
        raise Problem("invalid_body", f"{prefix}{exc}", field=f"{prefix}{exc.name}", row=row) from exc
    if len(found) > MOST_ATTRIBUTES:
        detail = f"there may be {MOST_ATTRIBUTES} attributes, not {len(found)}"
        raise Problem("invalid_body", detail, field=prefix.rstrip(".") or None, row=row)
    types.update(new_types(found, types))
    return found


def patched_values(
    before: Mapping[str, AttributeValue],
    sent: Mapping[str, Any],
    types: Types,
    *,
    prefix: str = "attributes.",
) -> dict[str, AttributeValue]:
    """Return attributes with those that were sent; null takes one away. Raises `invalid_body`."""
    new = values_of({name: each for name, each in sent.items() if each is not None}, types, prefix=prefix)
    found = {**{name: value for name, value in before.items() if name not in sent}, **new}
    if len(found) > MOST_ATTRIBUTES:
        detail = f"there may be {MOST_ATTRIBUTES} attributes, not {len(found)}"
        raise Problem("invalid_body", detail, field=prefix.rstrip(".") or None)
    return found


def _categories(sent: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(map(category_name, sent)))


def check_size(data: bytes, what: str, row: int | None = None) -> None:
    """Raise `invalid_body` for more bytes than an item or the attributes of a user may have."""
    if len(data) > MOST_ITEM_BYTES:
        detail = f"{what} may have {MOST_ITEM_BYTES} bytes as JSON, not {len(data)}"
        raise Problem("invalid_body", detail, row=row)


def _check(item: CatalogueItem, row: int | None) -> None:
    for field, texts in (("title", [item.title]), ("categories", item.categories), ("image", [item.image])):
        longest = max([len((text or "").encode()) for text in texts], default=0)
        if longest > MOST_TEXT_BYTES:
            detail = f"{field} may have {MOST_TEXT_BYTES} bytes, not {longest}"
            raise Problem("invalid_body", detail, field=field, row=row)
    if len(item.categories) > MOST_CATEGORIES or "" in item.categories:
        detail = f"categories must be up to {MOST_CATEGORIES} texts, none of them empty"
        raise Problem("invalid_body", detail, field="categories", row=row)
    start, end = item.available_from, item.available_until
    if start is not None and end is not None and start >= end:
        detail = "available_until must be later than available_from"
        raise Problem("invalid_body", detail, field="available_until", row=row)
    check_size(pack_item(item), "an item", row)


def _moment(value: float | str | None, field: str, row: int | None) -> float | None:
    if value is None:
        return None
    seconds = parse_time(value)
    if seconds is None:
        detail = f"{field} must be a time (ISO 8601, or seconds since 1970)"
        raise Problem("invalid_body", detail, field=field, row=row)
    return seconds
