"""Files of ratings and items: layouts are told apart, each row is taken or refused with line and reason."""

import gzip
import io
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evaluation.offline import splits
from factors import Scale
from featurestore.catalogue.schema import Types
from featurestore.ratings.context_schema import ContextField, ContextKind, ContextSchema
from foldin.files import reading
from foldin.files.contexts import FileFields
from foldin.files.dataset import FileRules, read_files, side_columns
from foldin.files.items import ItemsFile, read_items_file
from foldin.files.layout import find_layout
from foldin.files.reading import RatingsFile
from foldin.files.rows import BadRow, RowRules, pieces
from foldin.settings import named_columns
from processes.errors import CannotStartError

NOW = 1_700_000_000.0
RULES = RowRules(Scale(1.0, 5.0), NOW)


def read(
    path: Path, rules: RowRules = RULES, kind: str = "auto", columns: dict[str, str] | None = None
) -> tuple[list[tuple[Any, ...]], list[int], list[BadRow]]:
    rows: list[tuple[Any, ...]] = []
    lines: list[int] = []
    bad: list[BadRow] = []
    for batch in RatingsFile(path, find_layout(path, kind, columns)).read(rules):
        for some, where in pieces(batch, 3):
            # Without what it does not say.
            rows += [row if row[5] else row[: 5 if row[4] else 4] for row in some]
            lines += where
        bad += batch.bad
    return rows, lines, bad


def parquet(columns: dict[str, Any] | list[Any], names: list[str] | None = None) -> bytes:
    written = io.BytesIO()
    pq.write_table(pa.table(columns, names=names), written)
    return written.getvalue()


EXPECTED = [(b"196", b"242", 3.0, 881250949.0), (b"186", b"302", 4.0, 891717742.0)]
FILES = {
    "u.data": "196\t242\t3\t881250949\n186\t302\t4\t891717742\n",
    "ratings.dat": "196::242::3::881250949\n186::302::4::891717742\n",
    "ratings.csv": "userId,movieId,rating,timestamp\n196,242,3.0,881250949\n186,302,4.0,891717742\n",
    "ml.inter": "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
    "196\t242\t3\t881250949\n186\t302\t4\t891717742\n",
    "semicolons.csv": '"User-ID";"ISBN";"Book-Rating";"Date"\r\n"196";"242";"3";"881250949"\r\n'
    '"186";"302";"4";"891717742"\r\n',
    "no_last_end.csv": "timestamp,rating,item,user\n881250949,3,242,196\n891717742,4,302,186",
    "bom.csv": "\ufeffuser,item,rating,timestamp\n196,242,3,881250949\n186,302,4,891717742\n",
    "lines.ndjson": '\ufeff{"user_id": 196, "item_id": "242", "rating": 3, "timestamp": 881250949}\r\n'
    '{"timestamp":"1998-04-04T19:22:22Z","rating":4.0,"item_id":302,"user_id":"186","context":null}',
    "spare.csv": "x,user,item,rating,timestamp,y\n,196,242, 3 ,881250949,\n,186,302,4, 891717742,\n",
}


@pytest.mark.parametrize("name", FILES)
def test_each_layout_gives_the_same_ratings(tmp_path: Path, name: str) -> None:
    path, content = tmp_path / name, FILES[name].encode()
    first = 1 if name in {"u.data", "ratings.dat", "lines.ndjson"} else 2
    for written in (content, gzip.compress(content, mtime=0)):
        path.write_bytes(written)
        assert read(path) == (EXPECTED, [first, first + 1], [])


def test_parquet_takes_numbers_text_and_moments(tmp_path: Path) -> None:
    path = tmp_path / "ratings.parquet"
    moments = [datetime.fromtimestamp(881250949.25, UTC), datetime.fromtimestamp(891717742, UTC)]
    for kind in ("s", "ns"):
        times = pa.array(moments, pa.timestamp("us", "UTC")).cast(pa.timestamp(kind, "UTC"), safe=False)
        table = {
            "user_id": pa.array([196, 186]),
            "item_id": pa.array(["242", "302"]).dictionary_encode(),
            "rating": pa.array([3.0, 4.0], pa.float32()),
            "time": times,
        }
        path.write_bytes(parquet(table))
        rows, lines, bad = read(path)
        assert [row[:3] for row in rows] == [row[:3] for row in EXPECTED]
        assert [row[3] for row in rows] == [881250949.0 if kind == "s" else 881250949.25, 891717742.0]
        assert (lines, bad) == ([1, 2], [])
    holes = {"user": ["a", None, "c", "d", ""], "item": [1, 2, None, 4, 5], "rating": [1, 2, 3, None, 5]}
    path.write_bytes(parquet(holes))
    rows, _, bad = read(path)
    assert rows == [(b"a", b"1", 1.0, NOW)]
    assert [(row.line, row.reason) for row in bad] == [
        *((2, "user is missing"), (3, "item is missing")),
        *((4, "rating is missing"), (5, "user is empty")),
    ]


def test_columns_can_be_named_and_numbered(tmp_path: Path) -> None:
    path = tmp_path / "ratings.csv"
    path.write_text("who,what,how\nann,tea,5\n")
    named = read(path, columns={"user": "who", "item": "what", "rating": "how"})
    assert named == ([(b"ann", b"tea", 5.0, NOW)], [2], [])
    path.write_text("5|tea|ann\n4|milk|bob\n")
    numbered = read(path, columns={"user": "3", "item": "2", "rating": "1"})
    assert numbered == ([(b"ann", b"tea", 5.0, NOW), (b"bob", b"milk", 4.0, NOW)], [1, 2], [])


def test_a_time_is_guessed_and_what_is_not_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "ratings.csv"
    path.write_text("customer,sku,stars,when,note\nann,tea,5,60,x\n")
    columns = {"user": "customer", "item": "sku", "rating": "stars"}
    expected = (b"ann", b"tea", 5.0, 60.0)
    assert read(path)[0] == read(path, columns=columns)[0] == [expected]
    found = find_layout(path, "auto", None)
    assert "timestamp=when" in found.describe()
    assert found.unread == ["note"]
    # A person may know better.
    assert read(path, columns={**columns, "timestamp": ""})[0] == [(*expected[:3], NOW)]
    assert named_columns("user=a,timestamp=") == {"user": "a", "timestamp": ""}
    # The catalogue has the same words.
    path.write_text("sku,name\ntea,Tea\n")
    for told in (None, {"item": "sku"}, {"item_id": "sku"}):
        assert read_items_file(path, told, {}).rows == [{"item_id": "tea", "title": "Tea"}]


PLAIN = b"user,item,rating\n1,2,3\n"
TWICE = parquet([["a"], ["b"], ["i"], [3]], ["user", "user", "item", "rating"])
NOISE = np.random.default_rng(1).integers(0, 10**9, 40_000)


@pytest.mark.parametrize(
    ("content", "kind", "columns", "words"),
    [
        (b"", "auto", None, "is empty"),
        # What people try first: a workbook, something binary, a file without a header, items.
        (b"PK\x03\x04\x14\x00\x06", "auto", None, "save its sheet as CSV"),
        (b"\x01\x00user,item", "auto", None, "save it as CSV"),
        (b"ann,dune,4\nbob,emma,3\n", "auto", None, "--columns user=1,item=2,rating=3"),
        (b"item_id,title,year\ndune,Dune,1965\n", "auto", None, "--items"),
        (b"who,what,how\n1,2,3\n", "auto", None, r"who, what, how.*--columns.*timestamp="),
        (b"a,b,c\n1,2,3\n", "csv", {"user": "a", "item": "b", "rating": "x"}, "no column x.*a, b, c"),
        (PLAIN, "parquet", None, "not a Parquet file"),
        (PLAIN, "ndjson", None, "does not look like a ndjson file"),
        (b'{"u": "a"}', "auto", {"user": "u", "item": "i", "rating": "r"}, "leave --columns out"),
        # All would be one header, and no rating.
        (b"user,item,rating\r1,2,3\r4,5,1\r", "auto", None, "carriage return alone"),
        (TWICE, "auto", None, "two columns"),
        (
            parquet({"user": [1.5], "item": [1], "rating": [2.0]}),
            "auto",
            None,
            "column user .* holds numbers with",
        ),
        (b"PAR1 and nothing", "auto", None, "damaged Parquet"),
        (gzip.compress(PLAIN + b"".join(b"%d,1,3\n" % n for n in NOISE))[:-2000], "auto", None, "damaged"),
    ],
)
def test_a_file_that_fits_nothing_is_refused_with_what_to_do(
    tmp_path: Path, content: bytes, kind: str, columns: dict[str, str] | None, words: str
) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(CannotStartError, match=words) as refused:
        read(path, kind=kind, columns=columns)
    assert str(refused.value).isprintable()


BAD = [
    ("1,2,x", "rating is not a number: 'x'"),
    ("1,2,", "rating is not a number: ''"),
    ('1,2,"4,5"', "rating is not a number: '4,5' (write 4.5)"),
    ("1,2,nan", "rating is not a"),
    ("1,2,1e999", "rating is not a finite number"),
    ("1,2,1_0", "rating is not a number"),
    ("1,2,٣", "rating is not a number"),
    (",2,3", "user is empty"),
    ("1,,3", "item is empty"),
    (f"{'u' * 257},2,3", "user has 257 bytes"),
    ("1,2,6", "rating 6 is off the scale"),
    ("1,2,0.5", "rating 0.5 is off the scale"),
    ("1,2", "2 columns instead of 3"),
    ("1,2,3,4", "4 columns instead of 3"),
]


def test_a_bad_row_is_named_by_line_and_reason_and_the_others_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "ratings.csv"
    rows = "".join(f"{row}\r\n" for row, _ in BAD)
    path.write_text(f'user,item,rating\nann,"a\nb",1\n\n{rows}bob,c,5\n', "utf-8")
    kept, lines, bad = read(path)
    assert kept == [(b"ann", b"a\nb", 1.0, NOW), (b"bob", b"c", 5.0, NOW)]
    assert lines == [2, 5 + len(BAD)]
    assert [found.line for found in bad] == list(range(5, 5 + len(BAD)))
    for found, (row, reason) in zip(bad, BAD, strict=True):
        assert found.reason.startswith(reason), row
        assert found.off_scale == ("scale" in reason)
    path.write_bytes(b"user,item,rating\n\xff\xfe,1,2\nok,\xe4,2\nok,1,\xff\nok,1,2\n")
    kept, _, bad = read(path)
    assert kept == [(b"ok", b"1", 2.0, NOW)]
    assert [(row.line, row.reason.split()[0]) for row in bad] == [(2, "user"), (3, "item"), (4, "rating")]


def test_times_are_seconds_or_iso_8601(tmp_path: Path) -> None:
    path = tmp_path / "ratings.csv"
    times = {
        "881250949.5": 881250949.5,
        "1997-12-04T15:55:49Z": 881250949.0,
        "1997-12-04 15:55:49": 881250949.0,
        "1997-12-04T16:55:49+01:00": 881250949.0,
        "1997-12-04": 881193600.0,
        **dict.fromkeys(("yesterday", "1997-13-04", "1e17", "1e13", "inf", "")),
    }
    path.write_text("user,item,rating,timestamp\n" + "".join(f"1,2,3,{text}\n" for text in times))
    rows, _, bad = read(path)
    assert [row[3] for row in rows] == [seconds for seconds in times.values() if seconds is not None]
    assert [row.reason.split()[0] for row in bad] == ["timestamp"] * 6


def read_contexts(
    path: Path, columns: dict[str, str] | None = None, **kinds: ContextKind
) -> tuple[list[tuple[Any, ...]], list[tuple[int, str]]]:
    """The ratings of a file with contexts, and its bad rows. `kinds`: of the fields that the target knows."""
    known = ContextSchema(tuple(ContextField(name, kind) for name, kind in kinds.items()))
    rows, _, bad = read(path, RowRules(RULES.scale, NOW, FileFields(known)), columns=columns)
    return list(rows), [(each.line, each.reason) for each in bad]


def test_columns_of_contexts_are_numbers_or_categories(tmp_path: Path) -> None:
    path = tmp_path / "r"
    header = "user,item,rating,context.hour,context.device,context.empty"
    path.write_text(f"{header}\na,x,3,14,phone,\nb,y,4,,tv 2,\nc,z,5,2.5,,\n")
    expected = [{"hour": 14.0, "device": "phone"}, {"device": "tv 2"}, {"hour": 2.5}]
    rows, bad = read_contexts(path)
    assert ([row[5] for row in rows], bad) == (expected, [])
    table = {
        "user": ["a", "b", "c"],
        "item": ["x", "y", "z"],
        "rating": [3.0, 4.0, 5.0],
        "context.hour": pa.array([14, None, 2.5]),
        "context.device": pa.array(["phone", "tv 2", ""]).dictionary_encode(),
        "context.empty": pa.array([None, float("nan"), None], pa.float64()),
    }
    path.write_bytes(parquet(table))
    assert [row[5] for row in read_contexts(path)[0]] == expected
    # A rating alone has one.
    path.write_text("u,i,t,v,h\na,x,rating,3,1\nb,y,view,,2\nc,z,view,,\n")
    columns = {"user": "u", "item": "i", "type": "t", "rating": "v", "context.hour": "h"}
    rows, bad = read_contexts(path, columns)
    assert [row[4:] for row in rows] == [(b"rating", {"hour": 1.0}), (b"view",)]
    assert bad == [(3, "a rating may have a context")]


def test_a_context_that_is_none_is_a_bad_row(tmp_path: Path) -> None:
    lines = ["a,x,3,14,phone", "b,y,4,noon,phone", f"c,z,5,1,{'x' * 65}", "d,z,5,1e39,", "f,z,5,nan,tv"]
    path = tmp_path / "r.csv"
    path.write_text("\n".join(["user,item,rating,context.hour,context.device", *lines]) + "\n")
    rows, bad = read_contexts(path, hour="number", device="category")
    assert [row[5] for row in rows] == [{"hour": 14.0, "device": "phone"}, {"device": "tv"}]
    assert bad == [
        (3, "context.hour is not a number: 'noon'"),
        (4, "context.device has 65 bytes, more than 64"),
        (5, "context.hour is not a finite number of a float32"),
    ]
    # What the target has already decides: texts that look like numbers may be categories.
    assert read_contexts(path, hour="category")[0][0][5] == {"hour": "14", "device": "phone"}
    # More categories than a field may have: a category that only a bad row gives takes no room.
    rows_of = "".join(f"u,i{k},3,1,d{k}\n" for k in range(260))
    path.write_text(f"user,item,rating,context.hour,context.device\nu,i,99,1,bad\n{rows_of}")
    rows, bad = read_contexts(path, device="category")
    assert (len(rows), len(bad)) == (256, 1 + 4)
    assert bad[-1][1].startswith("context.device: 'device' has 256 categories")


def test_lines_of_ndjson_say_the_kinds_of_contexts_and_bad_ones_their_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "CHUNK_BYTES", 100)  # a line or two

    def line(context: str, more: str = "") -> str:
        return f'{{"user_id": "a", "item_id": "x", "rating": 3, "context": {context}{more}}}\n'

    path = tmp_path / "r.ndjson"
    good = [line('{"hour": 14, "on": "8"}'), line('{"hour": null}'), line('{"on": "tv", "new": true}')]
    bad = [line('{"on": 8}'), line('{"hour": "noon"}'), line("null", ', "stars": 1'), '{"user_id": "a"\n']
    bad += ['{"user_id": "a", "item_id": "", "rating": 3}\n', '{"user_id": "a", "item_id": "b"}\n', "[]\n"]
    bad += ['{"user_id": "\udcff", "item_id": "x", "rating": 3}\n']
    bad += ['{"user_id": "a", "item_id": "x", "rating": "4"}\n']
    many = ", ".join(f'"f{k}": 1' for k in range(33))
    path.write_text("".join([*good, "\n", *bad, line(f"{{{many}}}")]), errors="surrogateescape")
    rows, found = read_contexts(path)
    assert [row[4:] for row in rows] == [
        (None, {"hour": 14.0, "on": "8"}),
        (),
        (None, {"on": "tv", "new": 1.0}),
    ]
    assert [number for number, _ in found] == list(range(5, 15))
    words = ["context.on is of", "context.hour is of", "stars", "", "item is empty", "`rating`", "", ""]
    words += ["rating must be a number, not text", "32"]
    assert all(word in reason for word, (_, reason) in zip(words, found, strict=True)), found
    # What the target has decides, as the API does.
    assert read_contexts(path, on="number")[1][0][0] == 1


CSV = """movieId,Title,genres,year,seen,out,tagline
1,"Toy Story, 1995",Animation|Comedy,1995,true,1995-11-22,A toy
2,Heat,,1996.5,FALSE,,
"""


def read_items(
    path: Path, content: str | bytes, columns: dict[str, str] | None = None, held: Types | None = None
) -> ItemsFile:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_items_file(path, columns, held or {})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "items"


def test_a_csv_tells_its_fields_and_types(path: Path) -> None:
    for content in (CSV, gzip.compress(CSV.encode())):
        found = read_items(path, content)
        assert found.columns == {"item_id": "movieId", "title": "Title", "categories": "genres"}
        assert found.types == {"year": "number", "seen": "boolean", "out": "time", "tagline": "text"}
        first = {"year": 1995.0, "seen": True, "out": "1995-11-22T00:00:00Z", "tagline": "A toy"}
        categories = ["Animation", "Comedy"]
        assert found.rows == [
            {"item_id": "1", "title": "Toy Story, 1995", "categories": categories, "attributes": first},
            {"item_id": "2", "title": "Heat", "attributes": {"year": 1996.5, "seen": False}},
        ]
    lines = read_items(path, '{"item_id": "a", "hidden": true}\n\n{"item_id": "b"}\n')
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
    found = read_items(path, text, told)
    assert found.types == {"zip": "text", "words": "list"}
    values = {"zip": "01234", "words": ["x", "y"]}
    assert found.rows == [{"item_id": "a", "attributes": values, "available_until": 100.0}]
    held = read_items(path, "id,zip\na,1234\n", None, {"zip": "text"})
    assert held.rows == [{"item_id": "a", "attributes": {"zip": "1234"}}]


@pytest.mark.parametrize(
    ("content", "columns", "why"),
    [
        ("name,year\na,1\n", None, "which column.*item=NAME"),
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
def test_unreadable_files(path: Path, content: str | bytes, columns: dict[str, str] | None, why: str) -> None:
    with pytest.raises(CannotStartError, match=why):
        read_items(path, content, columns)


def test_the_latest_rating_of_a_pair_counts_and_a_second_file_wins(tmp_path: Path) -> None:
    first, second = tmp_path / "a.csv", tmp_path / "b.csv"
    first.write_text("user,item,rating\n" + "".join(f"u,{j},{1 + j % 5}\n" for j in range(12)) + "u,3,2\n")
    second.write_text("user,item,rating\nu,0,5\nv,1,4\n")
    read = read_files(first, second, FileRules())
    assert read.n_first == 11
    assert len(read.data.ratings.value) == 13
    assert read.remarks[0] == "2 pairs stand more than once: the latest counts"
    assert np.isnan(read.data.ratings.time).all()
    split = splits.given_test(read.data, read.n_first)
    assert split.truth().tolist() == [5, 4]
    first.write_text("user,item,rating,time\n" + "".join(f"u,{j},3,{j}\n" for j in range(12)) + "u,3,2,1\n")
    assert set(read_files(first, None, FileRules()).data.ratings.value) == {3.0}


def test_a_file_of_items_describes_those_that_are_rated(tmp_path: Path) -> None:
    path, ids = tmp_path / "items.csv", pa.array([b"i%d" % k for k in range(12)])
    lines = [f"i{k},{('drama', 'war')[k % 2]},{1950 + k},2020-01-{k + 1:02}" for k in range(10)]
    path.write_text("item_id,genres,year,since\n" + "\n".join([*lines, "other,drama,1,2020-01-01"]) + "\n")
    found = side_columns(path, "item", ids)
    assert found.columns is not None
    assert (found.described, found.columns.rows) == (10, 12)
    assert found.columns.described.tolist() == [True] * 10 + [False] * 2
    # Two genres, the year, and the time, which is a number too.
    assert found.columns.width == 4
    lines = [f'{{"item_id": "i{k}", "attributes": {{"year": {1950 + k}, "none": null}}}}' for k in range(10)]
    path.write_text("\n".join(lines))
    assert side_columns(path, "item", ids).described == 10
    path.write_text("\n".join([*lines, '{"item_id": "i11", "attributes": {"year": "long ago"}}']))
    with pytest.raises(CannotStartError, match=r"row 11 of .*year"):
        side_columns(path, "item", ids)
    assert side_columns(path, "item", pa.array([b"x"])).columns is None
