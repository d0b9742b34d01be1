"""What a filter says of one item: slowly, as the definition has it."""

from collections.abc import Sequence
from typing import Any

from featurestore.catalogue.item import CatalogueItem, Time
from service.rules.columns import Columns


def columns_of(items: Sequence[CatalogueItem]) -> Columns:
    columns = Columns()
    columns.put(range(len(items)), items)
    return columns


def values_of(item: CatalogueItem, key: str) -> list[Any]:
    if key in ("title", "categories", "available_from", "available_until"):
        value = getattr(item, key)
        # A title that is empty is none.
        value = None if key == "title" and not value else value
    else:
        value = item.attributes.get(key)
    if value is None:
        return []
    found = value if isinstance(value, list) else [value]
    return [each.seconds if isinstance(each, Time) else each for each in found]


def passes(item: CatalogueItem, condition: dict[str, Any]) -> bool:
    match condition:
        case {"has_id": ids}:
            return item.item_id in ids
        case {"is_empty": {"key": key}}:
            return not values_of(item, key)
        case {"key": key, "match": {"value": wanted} | {"any": wanted}}:
            wanted = wanted if isinstance(wanted, list) else [wanted]
            return any(value in wanted for value in values_of(item, key))
        case {"key": key, "match": {"except": wanted}}:
            return any(value not in wanted for value in values_of(item, key))
        case {"key": key, "range": ends}:
            return any(_inside(value, ends) for value in values_of(item, key))
    should = condition.get("should", [])
    return (
        all(passes(item, each) for each in condition.get("must", []))
        and (not should or any(passes(item, each) for each in should))
        and not any(passes(item, each) for each in condition.get("must_not", []))
    )


def _inside(value: float, ends: dict[str, float]) -> bool:
    held = {
        "gt": lambda end: value > end,
        "gte": lambda end: value >= end,
        "lt": lambda end: value < end,
        "lte": lambda end: value <= end,
    }
    return all(held[name](end) for name, end in ends.items())
