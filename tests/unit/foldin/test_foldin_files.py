"""Files of ratings.

Layouts are told apart, each row is a rating or is refused with its line and the reason.
"""

import csv
import gzip
import io
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factors import Scale
from featurestore.ratings.context_schema import ContextField, ContextKind, ContextSchema
from featurestore.settings import format_scale
from foldin.files import reading
from foldin.files.contexts import FileFields
from foldin.files.layout import find_layout
from foldin.files.reading import RatingsFile
from foldin.files.rows import BadRow, RowRules, distinct, off_scale, pieces, scale_for
from foldin.sinks import Row
from processes.errors import CannotStartError

NOW = 1_700_000_000.0
RULES = RowRules(Scale(1.0, 5.0), NOW)


def read(
    path: Path, rules: RowRules = RULES, kind: str = "auto", columns: dict[str, str] | None = None
) -> tuple[list[Row], list[int], list[BadRow]]:
    """Everything in a file: ratings, their lines, bad rows."""
    rows: list[Row] = []
    lines: list[int] = []
    bad: list[BadRow] = []
    for batch in RatingsFile(path, find_layout(path, kind, columns)).read(rules):
        for some, where in pieces(batch, 3):
            rows += some
            lines += where
        bad += batch.bad
    return rows, lines, bad


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
    "spare.csv": "x,user,item,rating,timestamp,y\n,196,242, 3 ,881250949,\n,186,302,4, 891717742,\n",
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("packed", [False, True])
def test_each_layout_gives_the_same_ratings(tmp_path: Path, name: str, packed: bool) -> None:
    path = tmp_path / name
    content = FILES[name].encode()
    path.write_bytes(gzip.compress(content, mtime=0) if packed else content)
    rows, lines, bad = read(path)
    assert rows == EXPECTED
    assert not bad
    first = 1 if name in {"u.data", "ratings.dat"} else 2
    assert lines == [first, first + 1]


def test_parquet_takes_numbers_text_and_moments(tmp_path: Path) -> None:
    path = tmp_path / "ratings.parquet"
    moments = [datetime.fromtimestamp(881250949.25, UTC), datetime.fromtimestamp(891717742, UTC)]
    for kind in ("s", "ms", "us", "ns"):
        table = pa.table(
            {
                "user_id": pa.array([196, 186]),
                "item_id": pa.array(["242", "302"]).dictionary_encode(),
                "rating": pa.array([3.0, 4.0], pa.float32()),
                "time": pa.array(moments, pa.timestamp("us", "UTC")).cast(
                    pa.timestamp(kind, "UTC"), safe=False
                ),
            }
        )
        pq.write_table(table, path)
        rows, lines, bad = read(path)
        assert [row[:3] for row in rows] == [row[:3] for row in EXPECTED]
        assert [row[3] for row in rows] == [881250949.0 if kind == "s" else 881250949.25, 891717742.0]
        assert lines == [1, 2]
        assert not bad


EVENTS = {
    "events.csv": "u,i,kind,v,t\nann,x,view,,1\nann,y,rating,4,2\nbob,x,purchase,30,3\n"
    "bob,y,rating,9,4\nbob,z,rating,,5\ncy,x,,1,6\n",
    "events.parquet": "",
}


@pytest.mark.parametrize("name", EVENTS)
def test_rows_may_be_events_of_types(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name.endswith("parquet"):
        table = {
            "u": ["ann", "ann", "bob", "bob", "bob", "cy"],
            "i": ["x", "y", "x", "y", "z", "x"],
            "kind": ["view", "rating", "purchase", "rating", "rating", None],
            "v": [None, 4.0, 30.0, 9.0, None, 1.0],
            "t": [1, 2, 3, 4, 5, 6],
        }
        pq.write_table(pa.table(table), path)
    else:
        path.write_text(EVENTS[name])
    columns = {"user": "u", "item": "i", "type": "kind", "rating": "v", "timestamp": "t"}
    rows, _, bad = read(path, columns=columns)
    assert rows == [
        (b"ann", b"x", 1.0, 1.0, b"view"),
        (b"ann", b"y", 4.0, 2.0, b"rating"),
        (b"bob", b"x", 30.0, 3.0, b"purchase"),
    ]
    assert [row.line - bad[0].line for row in bad] == [0, 1, 2]
    # Without a column of values each event counts 1, and a rating has none.
    del columns["rating"]
    rows, _, bad = read(path, columns=columns)
    assert [(row[2], row[4]) for row in rows if len(row) == 5] == [(1.0, b"view"), (1.0, b"purchase")]
    assert len(bad) == 4


def test_parquet_rows_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "ratings.parquet"
    table = pa.table(
        {
            "user": pa.array(["a", None, "c", "d", ""]),
            "item": pa.array([1, 2, None, 4, 5]),
            "rating": pa.array([1.0, 2.0, 3.0, None, 5.0]),
        }
    )
    pq.write_table(table, path)
    rows, _, bad = read(path)
    assert rows == [(b"a", b"1", 1.0, NOW)]
    assert [(row.line, row.reason) for row in bad] == [
        (2, "user is missing"),
        (3, "item is missing"),
        (4, "rating is missing"),
        (5, "user is empty"),
    ]


def test_parquet_of_the_wrong_type_is_refused_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "ratings.parquet"
    pq.write_table(pa.table({"user": [1.5], "item": [1], "rating": [2.0]}), path)
    with pytest.raises(CannotStartError, match=r"column user .* holds double"):
        read(path)


def test_columns_can_be_named_and_numbered(tmp_path: Path) -> None:
    path = tmp_path / "ratings.csv"
    path.write_text("who,what,how\nann,tea,5\n")
    assert read(path, columns={"user": "who", "item": "what", "rating": "how"})[0] == [
        (b"ann", b"tea", 5.0, NOW)
    ]
    path.write_text("5|tea|ann\n4|milk|bob\n")
    rows, lines, _ = read(path, columns={"user": "3", "item": "2", "rating": "1"})
    assert rows == [(b"ann", b"tea", 5.0, NOW), (b"bob", b"milk", 4.0, NOW)]
    assert lines == [1, 2]


@pytest.mark.parametrize(
    ("content", "kind", "columns", "words"),
    [
        (b"", "auto", None, "is empty"),
        (b"who,what,how\n1,2,3\n", "auto", None, r"who, what, how.*--columns"),
        (b"a,b,c\n1,2,3\n", "csv", {"user": "a", "item": "b", "rating": "x"}, "no column x.*a, b, c"),
        (b"a,b,c\n1,2,3\n", "csv", {"user": "1", "item": "2", "rating": "7"}, "no column 7"),
        (b"user,item,rating\n1,2,3\n", "recbole", None, "does not look like a recbole file"),
        (b"user,item,rating\n1,2,3\n", "parquet", None, "not a Parquet file"),
        # All would be one header, and no rating.
        (b"user,item,rating\r1,2,3\r4,5,1\r", "auto", None, "carriage return alone"),
        (b"user,user,item,rating\n1,2,3,4\n", "auto", None, "two columns user"),
        (b"PAR1 and nothing", "auto", None, "damaged Parquet"),
        (b"PAR1 and nothing", "csv", None, "is a Parquet file"),
        (
            gzip.compress(b"user,item,rating\n1,2,3\n" * 1000, mtime=0)[:40],
            "auto",
            None,
            "cannot be read|damaged",
        ),
    ],
)
def test_a_file_that_fits_nothing_is_refused_with_what_to_do(
    tmp_path: Path, content: bytes, kind: str, columns: dict[str, str] | None, words: str
) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(CannotStartError, match=words) as refused:
        read(path, kind=kind, columns=columns)
    assert "\n" not in str(refused.value)


def test_a_pipe_is_refused(tmp_path: Path) -> None:
    """What was read of it to tell the columns, or to check the rows, does not come again."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CannotStartError, match="no file"):
        read(tmp_path / "pipe")


def test_two_columns_of_a_name_are_refused(tmp_path: Path) -> None:
    columns = [pa.array(["a"]), pa.array(["b"]), pa.array(["i"]), pa.array([3])]
    table = pa.table(columns, names=["user_id", "user_id", "item_id", "rating"])
    pq.write_table(table, tmp_path / "ratings.parquet")
    with pytest.raises(CannotStartError, match="two columns user_id"):
        read(tmp_path / "ratings.parquet")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CannotStartError, match="No such file"):
        read(tmp_path / "nothing.csv")


def test_a_gzip_cut_short_says_that_it_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "ratings.csv.gz"
    rng = np.random.default_rng(1)
    text = "".join(f"{user},{item},3\n" for user, item in rng.integers(0, 10**9, (40_000, 2)))
    path.write_bytes(gzip.compress(("user,item,rating\n" + text).encode())[:-2000])
    with pytest.raises(CannotStartError, match="damaged"):
        read(path)


BAD = [
    ("1,2,x", "rating is not a number: 'x'"),
    ("1,2,", "rating is not a number: ''"),
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


@pytest.mark.parametrize(("row", "reason"), BAD)
def test_a_bad_row_is_named_by_line_and_reason_and_the_others_are_kept(
    tmp_path: Path, row: str, reason: str
) -> None:
    path = tmp_path / "ratings.csv"
    path.write_text(f'user,item,rating\nann,"a\nb",1\n\n{row}\r\nbob,c,5\n', "utf-8")
    rows, lines, bad = read(path)
    assert rows == [(b"ann", b"a\nb", 1.0, NOW), (b"bob", b"c", 5.0, NOW)]
    assert lines == [2, 6]
    assert [found.line for found in bad] == [5]
    assert bad[0].reason.startswith(reason)
    assert bad[0].off_scale == ("scale" in reason)


def test_bytes_that_are_not_utf8_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "ratings.csv"
    path.write_bytes(b"user,item,rating\n\xff\xfe,1,2\nok,\xe4,2\nok,1,\xff\nok,1,2\n")
    rows, _, bad = read(path)
    assert rows == [(b"ok", b"1", 2.0, NOW)]
    assert [(row.line, row.reason[:14]) for row in bad] == [
        (2, "user is not UT"),
        (3, "item is not UT"),
        (4, "rating is not "),
    ]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("881250949", 881250949.0),
        ("881250949.5", 881250949.5),
        ("1997-12-04T15:55:49Z", 881250949.0),
        ("1997-12-04 15:55:49", 881250949.0),
        ("1997-12-04T16:55:49+01:00", 881250949.0),
        ("1997-12-04", 881193600.0),
    ],
)
def test_times_are_seconds_or_iso_8601(tmp_path: Path, text: str, seconds: float) -> None:
    path = tmp_path / "ratings.csv"
    path.write_text(f"user,item,rating,timestamp\n1,2,3,{text}\n")
    assert read(path)[0] == [(b"1", b"2", 3.0, seconds)]


@pytest.mark.parametrize("text", ["yesterday", "1997-13-04", "1e17", "inf", ""])
def test_times_that_are_none_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "ratings.csv"
    path.write_text(f"user,item,rating,timestamp\n1,2,3,{text}\n")
    rows, _, bad = read(path)
    assert not rows
    assert bad[0].reason.startswith("timestamp")


def test_a_quote_that_is_never_closed_is_refused_before_it_fills_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "CHUNK_BYTES", 100)
    monkeypatch.setattr(reading, "MAX_ROW_BYTES", 1000)
    path = tmp_path / "ratings.csv"
    path.write_text('user,item,rating\n1,"2,3\n' + "1,2,3\n" * 1000)
    with pytest.raises(CannotStartError, match="never closed"):
        read(path)


FIELD = st.text(st.sampled_from('ab ,;"\n\t:é'), min_size=1, max_size=8)


@settings(deadline=None)
@given(
    rows=st.lists(st.tuples(FIELD, FIELD, st.floats(1, 5), st.booleans()), max_size=30),
    chunk=st.integers(20, 300),
    packed=st.booleans(),
)
def test_what_a_csv_writer_wrote_comes_back_whatever_the_stretches(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[tuple[str, str, float, bool]],
    chunk: int,
    packed: bool,
) -> None:
    """Lines too: each is where the row begins in the file."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["user", "item", "rating"])
    expected, where = [], []
    for user, item, rating, blank in rows:
        where.append(text.getvalue().count("\n") + 1)
        writer.writerow([user, item, repr(rating)])
        expected.append((user.encode(), item.encode(), rating, NOW))
        if blank:
            text.write("\n")
    path = tmp_path_factory.mktemp("csv") / "ratings.csv"
    content = text.getvalue().encode()
    path.write_bytes(gzip.compress(content, mtime=0) if packed else content)
    before, reading.CHUNK_BYTES = reading.CHUNK_BYTES, chunk
    try:
        found, lines, bad = read(path)
    finally:
        reading.CHUNK_BYTES = before
    assert found == expected
    assert not bad
    assert lines == where


def test_what_comes_after_a_line_goes_on_there(tmp_path: Path) -> None:
    path = tmp_path / "ratings.csv"
    path.write_text("user,item,rating\n" + "".join(f"u{n},i,{n}\n" for n in range(1, 8)))
    (batch,) = RatingsFile(path, find_layout(path, "auto", None)).read(RULES)
    assert batch.after(0) is batch
    assert batch.after(4).user_ids.to_pylist() == [b"u4", b"u5"]
    assert [row.line for row in batch.after(7).bad] == [8]
    assert len(batch.after(99)) == 0


def test_the_different_numbers_of_many_keep_no_step_that_their_ends_would() -> None:
    many = distinct(np.linspace(0.5, 5.0, 5_000))
    assert format_scale(scale_for(distinct(np.concatenate((many, [1.0, 1.5]))))) == "0.5:5"


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ([1.0, 2.0, 5.0], "1:5"),
        ([0.5, 1.0, 3.5, 5.0], "0.5:5:0.5"),
        ([0.0, 10.0], "0:10"),
        ([-10.0, -9.75, 3.25, 10.0], "-10:10:0.25"),
        ([1.0, 1.7, 3.14], "1:3.14"),
        ([3.0], "1:5"),
        ([7.0], "7:8"),
        ([2.5, 3.0, 4.5], "0.5:5:0.5"),
        ([2.5, 4.5], "0.5:5"),
        ([0.0, 37.0, 38.0, 100.0], "0:100"),
        ([], "1:5"),
    ],
)
def test_the_scale_for_ratings_takes_all_of_them(values: list[float], text: str) -> None:
    assert format_scale(scale_for(np.array(values))) == text


def test_between_two_steps_is_off_the_scale() -> None:
    ratings = np.array([0.5, 0.75, 1.0, 5.0, 5.5, np.nan])
    assert off_scale(ratings, Scale(0.5, 5.0, 0.5)).tolist() == [False, True, False, False, True, False]


def read_contexts(
    path: Path, columns: dict[str, str] | None = None, **kinds: ContextKind
) -> tuple[list[tuple[Any, ...]], list[tuple[int, str]]]:
    """The ratings of a file with contexts, and its bad rows. `kinds`: of the fields that the target knows."""
    known = ContextSchema(tuple(ContextField(name, kind) for name, kind in kinds.items()))
    rows, _, bad = read(path, RowRules(RULES.scale, NOW, FileFields(known)), columns=columns)
    return list(rows), [(each.line, each.reason) for each in bad]


def test_columns_of_contexts_are_numbers_or_categories(tmp_path: Path) -> None:
    header = "user,item,rating,context.hour,context.device,context.empty"
    lines = ["a,x,3,14,phone,", "b,y,4,,tv 2,", "c,z,5,2.5,,"]
    text = tmp_path / "r.csv"
    text.write_text("\n".join([header, *lines]) + "\n")
    expected = [{"hour": 14.0, "device": "phone"}, {"device": "tv 2"}, {"hour": 2.5}]
    rows, bad = read_contexts(text)
    assert [row[5] for row in rows] == expected
    assert bad == []
    table = {
        "user": ["a", "b", "c"],
        "item": ["x", "y", "z"],
        "rating": [3.0, 4.0, 5.0],
        "context.hour": pa.array([14, None, 2.5]),
        "context.device": pa.array(["phone", "tv 2", ""]).dictionary_encode(),
        "context.empty": pa.array([None, float("nan"), None], pa.float64()),
    }
    path = tmp_path / "r.parquet"
    pq.write_table(pa.table(table), path)
    assert [row[5] for row in read_contexts(path)[0]] == expected
    table["context.empty"] = pa.array([True, False, None])
    pq.write_table(pa.table(table), path)
    assert [(row[5] or {}).get("empty") for row in read_contexts(path)[0]] == [1.0, 0.0, None]


def test_a_context_that_is_none_is_a_bad_row(tmp_path: Path) -> None:
    lines = [
        "user,item,rating,context.hour,context.device",
        "a,x,3,14,phone",
        "b,y,4,noon,phone",
        f"c,z,5,1,{'x' * 65}",
        "d,z,5,1e39,",
        "e,z,5,inf,",
        "f,z,5,nan,tv",
    ]
    path = tmp_path / "r.csv"
    path.write_text("\n".join(lines) + "\n")
    rows, bad = read_contexts(path, hour="number", device="category")
    assert [(row[0], row[5]) for row in rows] == [
        (b"a", {"hour": 14.0, "device": "phone"}),
        (b"f", {"device": "tv"}),
    ]
    assert bad == [
        (3, "context.hour is not a number: 'noon'"),
        (4, "context.device has 65 bytes, more than 64"),
        (5, "context.hour is not a finite number of a float32"),
        (6, "context.hour is not a finite number of a float32"),
    ]
    # What the target has already decides: texts that look like numbers may be categories.
    assert read_contexts(path, hour="category")[0][0][5] == {"hour": "14", "device": "phone"}
    path.write_bytes(b"user,item,rating,context.a\na,x,3,\xff\nb,y,4,ok\n")
    rows, bad = read_contexts(path)
    assert [row[5] for row in rows] == [{"a": "ok"}]
    assert bad == [(2, "context.a is not UTF-8")]
    table = pa.table({"user": ["a"], "item": ["x"], "rating": [3.0], "context.device": [7]})
    pq.write_table(table, tmp_path / "r.parquet")
    _, bad = read_contexts(tmp_path / "r.parquet", device="category")
    assert "has categories, and this is a number" in bad[0][1]


def test_what_the_target_has_no_room_for_is_a_bad_row(tmp_path: Path) -> None:
    known = ContextSchema(tuple(ContextField(f"v{k}", "number") for k in range(30)))
    known = known.merged(ContextSchema((ContextField("device", "category", ("tv", "old")),)))
    fields = FileFields(known.without("v0").without("device", "old"))
    header = "user,item,rating,context.device,context.new,context.more,context.v0"
    texts = [f"d{k}" for k in range(260)]
    rows = [f"u,i{k},3,{text},,," for k, text in enumerate(texts)]
    # A category that only a bad row gives takes no room.
    lines = [header, "u,i,99,bad,,,", *rows, "u,j,3,tv,,,", "u,j,3,old,,,", "u,k,3,,1,,", "u,k,3,,2,x,"]
    lines += ["u,l,3,,,y,", "u,m,3,,,,5", "u,n,3,d0,3,,"]
    path = tmp_path / "r.csv"
    path.write_text("\n".join(lines) + "\n")
    for _ in range(2):  # as the pass that checks, and the one that writes
        found, where, bad = read(path, RowRules(RULES.scale, NOW, fields))
        assert len(found) == len(where) == 255 + 1 + 1 + 2 + 1
        reasons = {each.line: each.reason for each in bad}
        assert len(reasons) == 8
        assert reasons[258].startswith("context.device: 'device' has 256 categories")
        assert "'device' has retired its category 'old'" in reasons[264]
        assert reasons[268].startswith("context.v0: 'v0' is retired")
    schema = fields.schema
    assert [each.name for each in schema.shown][-2:] == ["new", "more"]
    with pytest.raises(ValueError, match="256 categories"):
        schema.extended(schema.lacking([{"device": "d259"}]))
    assert fields.given == {"device", "new", "more", "v0"}


def test_each_type_that_can_hold_a_context_is_read(tmp_path: Path) -> None:
    told = {
        "nothing": pa.nulls(2),
        "view": pa.array(["tv", None], pa.string_view()),
        "bytes_view": pa.array([b"tv", b""], pa.binary_view()),
        "large": pa.array([b"tv", None], pa.large_binary()),
        "number_view": pa.array(["1.5", None], pa.string_view()),
    }
    columns = {f"context.{name}": column for name, column in told.items()}
    path = tmp_path / "r.parquet"
    pq.write_table(pa.table({"user": ["a", "b"], "item": ["x", "y"], "rating": [3.0, 4.0], **columns}), path)
    rows, bad = read_contexts(path)
    assert bad == []
    given = {"view": "tv", "bytes_view": "tv", "large": "tv", "number_view": 1.5}
    assert [row[5] for row in rows] == [given, None]


@pytest.mark.parametrize(
    ("names", "why"),
    [
        (("context.hour", "context.hour"), "two columns context.hour"),
        (("context.", "context.a"), "without a name"),
    ],
)
@pytest.mark.parametrize("kind", ["csv", "parquet", "inter"])
def test_columns_of_contexts_have_names_of_their_own(
    tmp_path: Path, names: tuple[str, str], why: str, kind: str
) -> None:
    path = tmp_path / f"r.{kind}"
    every = ["user", "item", "rating", *names]
    if kind == "parquet":
        pq.write_table(pa.table([pa.array(["1"])] * 5, names=every), path)
    elif kind == "csv":
        path.write_text(",".join(every) + "\na,x,3,1,2\n")
    else:
        path.write_text("\t".join(f"{each}:token" for each in every) + "\na\tx\t3\t1\t2\n")
    with pytest.raises(CannotStartError, match=why):
        find_layout(path, "auto", None)


def test_an_event_that_is_no_rating_has_no_context(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    path.write_text("u,i,t,v,h\na,x,rating,3,1\nb,y,view,,2\nc,z,view,,\n")
    columns = {"user": "u", "item": "i", "type": "t", "rating": "v", "context.hour": "h"}
    rows, bad = read_contexts(path, columns)
    assert [row[4:] for row in rows] == [(b"rating", {"hour": 1.0}), (b"view", None)]
    assert bad == [(3, "a rating may have a context")]
