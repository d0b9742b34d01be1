"""Files of items: which column is what, and of which type."""

import gzip
from datetime import date
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featurestore.catalogue.schema import Types
from foldin.files.items import ItemsFile, read_items_file
from processes.errors import CannotStartError

CSV = """movieId,Title,genres,year,seen,out,tagline
1,"Toy Story, 1995",Animation|Comedy,1995,true,1995-11-22,A toy
2,Heat,,1996.5,FALSE,,
"""


def read(
    path: Path, content: str | bytes, columns: dict[str, str] | None = None, held: Types | None = None
) -> ItemsFile:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_items_file(path, columns, held or {})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "items"


def test_a_csv_tells_its_fields_and_types(path: Path) -> None:
    for content in (CSV, gzip.compress(CSV.encode())):
        found = read(path, content)
        assert found.columns == {"item_id": "movieId", "title": "Title", "categories": "genres"}
        assert found.types == {"year": "number", "seen": "boolean", "out": "time", "tagline": "text"}
        first = {"year": 1995.0, "seen": True, "out": "1995-11-22T00:00:00Z", "tagline": "A toy"}
        categories = ["Animation", "Comedy"]
        assert found.rows == [
            {"item_id": "1", "title": "Toy Story, 1995", "categories": categories, "attributes": first},
            {"item_id": "2", "title": "Heat", "attributes": {"year": 1996.5, "seen": False}},
        ]
    lines = read(path, '{"item_id": "a", "hidden": true}\n\n{"item_id": "b"}\n')
    assert lines.rows == [{"item_id": "a", "hidden": True}, {"item_id": "b"}]


def test_parquet_keeps_its_types_also_where_json_has_no_cell(path: Path) -> None:
    table = {
        "id": ["a", "b"],
        "genres": [["x", None, ""], None],
        "price": [Decimal("9.50"), None],
        "size": [1.0, float("nan")],
        "day": [date(2020, 1, 2), None],
        "out": pa.array([1_700_000_000_123_456_789, None], pa.timestamp("ns", "UTC")),
        "available_until": [float("nan"), float("inf")],
    }
    pq.write_table(pa.table(table), path)
    found = read_items_file(path, None, {})
    assert found.types == {"price": "number", "size": "number", "day": "time", "out": "time"}
    values = {"price": 9.5, "size": 1.0, "day": "2020-01-02T00:00:00Z", "out": "2023-11-14T22:13:20.123456Z"}
    assert found.rows == [
        {"item_id": "a", "categories": ["x"], "attributes": values},
        # The API says that this is no time.
        {"item_id": "b", "available_until": "inf"},
    ]
    pq.write_table(pa.table({"id": ["a"], "out": pa.array([2**62], pa.timestamp("us"))}), path)
    with pytest.raises(CannotStartError, match="date value out of range"):
        read_items_file(path, None, {})


def test_columns_and_types_can_be_told(path: Path) -> None:
    text = "key,zip,words,until\na,01234,x|y,100\n"
    told = {"item_id": "key", "zip": "text", "words": "list", "available_until": "until"}
    found = read(path, text, told)
    assert found.types == {"zip": "text", "words": "list"}
    values = {"zip": "01234", "words": ["x", "y"]}
    assert found.rows == [{"item_id": "a", "attributes": values, "available_until": 100.0}]
    held = read(path, "id,zip\na,1234\n", None, {"zip": "text"})
    assert held.rows == [{"item_id": "a", "attributes": {"zip": "1234"}}]


@pytest.mark.parametrize(
    ("content", "columns", "why"),
    [
        ("name,year\na,1\n", None, "which column.*item_id=NAME"),
        ("id,year\na,1\n", {"item_id": "key"}, "no column key"),
        ("id,year\na,old\n", {"year": "number"}, "row 1 of .*year is 'old', which is no number"),
        ("id,year\n,1\n", None, "row 1 of .* has no id"),
        ("id,year\na,1,2\n", None, "cannot be read"),
        ("id,id\na,1\n", None, "two columns of one name"),
        (f"id,{'x' * 65}\na,1\n", None, "no usable name"),
        ('{"item_id": 1}\n{]\n', None, "line 2 of"),
        ('{"item_id": 1}\n[1]\n', None, "line 2 of"),
        ('{"item_id": 1, "attributes": {"year": NaN}}\n', None, "line 1 of .* is no JSON"),
        ('{"a":' * 5000 + "1" + "}" * 5000, None, "line 1 of .* is no JSON"),
        ("id,title\ra,b\r", None, "cannot be read"),
        (b"\x1f\x8bnot gzip", None, "cannot be read"),
        (b"PAR1 not parquet", None, "cannot be read"),
        ("", None, "which column|cannot be read"),
    ],
)
def test_what_cannot_be_read_says_why(
    path: Path, content: str | bytes, columns: dict[str, str] | None, why: str
) -> None:
    with pytest.raises(CannotStartError, match=why):
        read(path, content, columns)
