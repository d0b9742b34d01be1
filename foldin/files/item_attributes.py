"""What a file of items says of the items of a data set. Invariant: a file is read as an import of items reads
it, and an item that the data set has no rating of is left out.
"""

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from factors import Columns, learn_encoding
from featurestore.catalogue.columns import attributes_by_row
from featurestore.catalogue.item import AttributeType, AttributeValue
from featurestore.catalogue.schema import ValueRefused, new_types, typed
from foldin.files.items import read_items_file
from processes.errors import CannotStartError


@dataclass(frozen=True, slots=True)
class ItemColumns:
    """`columns` (n_items, c): the attributes, encoded; None where they say nothing. `described`: of how many
    items there are any; `remarks`: a line each.
    """

    columns: Columns | None
    described: int
    remarks: tuple[str, ...]


def item_columns(path: Path, item_ids: pa.Array) -> ItemColumns:
    """Return the attributes of items, by row of `item_ids` (n_items,). Raises CannotStartError."""
    read = read_items_file(path, None, {})
    row_of = {item_id: row for row, item_id in enumerate(item_ids.to_pylist())}
    held: dict[str, AttributeType] = dict(read.types)
    # The last of an item that stands twice, as in an import.
    found: dict[int, tuple[list[str], dict[str, AttributeValue]]] = {}
    for number, item in enumerate(read.rows, 1):
        row = row_of.get(str(item.get("item_id")).encode())
        if row is None:
            continue
        try:
            values = {
                name: typed(name, value, held.get(name))
                for name, value in item.get("attributes", {}).items()
                if value is not None
            }
        except (ValueRefused, AttributeError) as exc:
            raise CannotStartError(f"row {number} of {path}: {exc}") from exc
        held |= new_types(values, held)
        found[row] = [str(each) for each in item.get("categories", [])], values
    described = sum(bool(categories or values) for categories, values in found.values())
    given = attributes_by_row((row, *each) for row, each in found.items())
    encoding = learn_encoding(given, len(item_ids))
    columns = encoding.encode(given, len(item_ids)) if encoding.width else None
    return ItemColumns(columns, described, tuple(read.remarks))
