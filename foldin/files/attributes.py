"""What a file says of the items, or of the users, of a data set.

Invariant: a file is read as an import of items reads it, and what the data set has no rating of is left out.
"""

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from evaluation.question import SideName
from factors import Columns, learn_encoding
from featurestore.catalogue.columns import attributes_by_row
from featurestore.catalogue.item import AttributeType, AttributeValue
from featurestore.catalogue.schema import ValueRefused, new_types, typed
from foldin.files.items import SYNONYMS, USER_SYNONYMS, read_items_file
from processes.errors import CannotStartError


@dataclass(frozen=True, slots=True)
class SideColumns:
    """`columns` (n, c): the attributes of items (or users), encoded; None where they say nothing.
    `described`: of how many there are any; `remarks`: a line each.
    """

    columns: Columns | None
    described: int
    remarks: tuple[str, ...]


def side_columns(path: Path, side: SideName, ids: pa.Array) -> SideColumns:
    """Return the attributes of items (or users), by row of their `ids` (n,). Raises CannotStartError."""
    read = read_items_file(path, None, {}, names=SYNONYMS if side == "item" else USER_SYNONYMS)
    row_of = {each: row for row, each in enumerate(ids.to_pylist())}
    held: dict[str, AttributeType] = dict(read.types)
    # The last of one that stands twice, as in an import.
    found: dict[int, tuple[list[str], dict[str, AttributeValue]]] = {}
    for number, told in enumerate(read.rows, 1):
        row = row_of.get(str(told.get(f"{side}_id")).encode())
        if row is None:
            continue
        try:
            values = {
                name: typed(name, value, held.get(name))
                for name, value in told.get("attributes", {}).items()
                if value is not None
            }
        except (ValueRefused, AttributeError) as exc:
            raise CannotStartError(f"row {number} of {path}: {exc}") from exc
        held |= new_types(values, held)
        found[row] = [str(each) for each in told.get("categories", [])], values
    described = sum(bool(categories or values) for categories, values in found.values())
    given = attributes_by_row((row, *each) for row, each in found.items())
    encoding = learn_encoding(given, len(ids))
    columns = encoding.encode(given, len(ids)) if encoding.width else None
    return SideColumns(columns, described, tuple(read.remarks))
