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


def test_recbole_tells_lists_by_its_header(path: Path) -> None:
    header = "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\tmood:token_seq\n"
    found = read(path, header + '1\tToy "Story"\t1995\tAnimation Children\'s\tglad loud\n2\tHeat\t\t\t\n')
    assert found.columns == {"item_id": "item_id", "title": "movie_title", "categories": "class"}
    assert found.types == {"release_year": "number", "mood": "list"}
    assert found.rows[0] == {
        "item_id": "1",
        "title": 'Toy "Story"',
        "categories": ["Animation", "Children's"],
        "attributes": {"release_year": 1995.0, "mood": ["glad", "loud"]},
    }
    assert found.rows[1] == {"item_id": "2", "title": "Heat"}


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


def test_an_id_is_the_one_that_ratings_have(path: Path) -> None:
    title = pa.array([b"a", b"b"], pa.binary())
    for ids, expected in (
        (pa.array(["dune", "7"]).dictionary_encode(), ["dune", "7"]),
        (pa.array([b"dune", "Amélie".encode()], pa.binary()), ["dune", "Amélie"]),
        (pa.array([7, 2**63 - 1]), ["7", "9223372036854775807"]),
        (pa.array([7.0, 2.0**53 - 1]), ["7", "9007199254740991"]),
        (pa.array([Decimal(7), Decimal(10**37 + 1)], pa.decimal128(38, 0)), ["7", str(10**37 + 1)]),
    ):
        pq.write_table(pa.table({"id": ids, "title": title}), path)
        found = read_items_file(path, None, {}).rows
        assert [(row["item_id"], row["title"]) for row in found] == list(zip(expected, "ab", strict=True))
    # What would be that of another item is refused.
    for ids, why in (
        (pa.array([7.5]), "7.5 is no id"),
        (pa.array([2.0**53]), "9007199254740992.0 is no id"),
        (pa.array([float("nan")]), "row 1 .* has no id"),
        (pa.array([Decimal("7.5")], pa.decimal128(9, 2)), "7.50 is no id"),
        (pa.array([True]), "True is no id"),
        (pa.array([b"\xff"], pa.binary()), "invalid start byte"),
        (pa.array([date(2024, 1, 31)]), "2024-01-31 is no id"),
        (pa.array([["a"]]), "is no id"),
    ):
        pq.write_table(pa.table({"id": ids}), path)
        with pytest.raises(CannotStartError, match=why):
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


def test_few_values_of_another_type_are_told_and_can_be_left_out(path: Path) -> None:
    text = "id,year\n" + "".join(f"{n},{1900 + n}\n" for n in range(199)) + "x,unknown\n"
    found = read(path, text)
    assert found.types == {"year": "text"}
    assert found.remarks == [
        "1 of 200 values of year are no number (unknown): --columns year=number --on-bad skip leaves them out"
    ]
    with pytest.raises(CannotStartError, match="row 200"):
        read(path, text, {"year": "number"})
    left = read_items_file(path, {"year": "number"}, {}, skip_bad=True)
    assert left.remarks == ["1 values of year are no number, and were left out"]
    assert (left.rows[0]["attributes"], "attributes" in left.rows[199]) == ({"year": 1900.0}, False)


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
