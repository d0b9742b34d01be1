"""Ids, queries and bodies at the edge: what passes, and what is named where something does not."""

import numpy as np
import pytest

from factors import Scale
from service.http.parsing import checked_id, whole_number
from service.http.problems import Problem
from service.routes.ratings import parse_ratings

SCALE = Scale(1.0, 5.0)


def refused(body: bytes, *, lines: bool = False) -> Problem:
    with pytest.raises(Problem) as caught:
        parse_ratings(body, SCALE, 1e9, lines=lines)
    return caught.value


def row(user: str = '"u"', item: str = '"i"', rating: str = "3", more: str = "") -> str:
    return f'{{"user_id": {user}, "item_id": {item}, "rating": {rating}{more}}}'


@pytest.mark.parametrize("raw", [b"", b"x" * 257, "é".encode() * 129, b"\xff", b"a\xc3"])
def test_other_ids_are_refused_by_field(raw: bytes) -> None:
    with pytest.raises(Problem) as caught:
        checked_id(raw, "user_id")
    assert (caught.value.status, caught.value.field) == (400, "user_id")


@pytest.mark.parametrize("text", ["", "+1", " 1", "1_0", "1.0", "\u0663", "0x1", "1e3", "-1", "11", "9" * 30])
def test_whole_numbers_are_plain(text: str) -> None:
    with pytest.raises(Problem):
        whole_number(text, "n", 0, 10)


def test_one_object_an_array_and_lines_are_the_same() -> None:
    one, other = row('"u"', "7"), row("12", '"i"', "4.5", ', "timestamp": 5')
    array = parse_ratings(f" [{one}, {other}]".encode(), SCALE, 1e9, lines=False).columns
    assert array.user_id == [b"u", b"12"]
    assert array.item_id == [b"7", b"i"]
    assert (array.rating.tolist(), array.time.tolist()) == ([3.0, 4.5], [1e9, 5.0])
    for text in (f"{one}\n{other}", f"{one}\r\n\r\n{other}\n"):
        for lines in (True, False):
            found = parse_ratings(text.encode(), SCALE, 1e9, lines=lines).columns
            assert (found.user_id, found.item_id) == (array.user_id, array.item_id)
            np.testing.assert_array_equal([found.rating, found.time], [array.rating, array.time])
    assert parse_ratings(one.encode(), SCALE, 1e9, lines=False).columns.user_id == [b"u"]
    assert parse_ratings(b"[]", SCALE, 1e9, lines=False).columns.rating.tolist() == []


WRONG = {
    "rating": ["NaN", "Infinity", "-Infinity", "1e999", "-1e999", "true", "null", '"4"', "[]", "0.99", "6"],
    "user_id": ["NaN", "1e999", "true", "null", "1.0", '""', f'"{"x" * 257}"', r'"\ud800"', "{}"],
    "item_id": ["NaN", "false", "null", "2.5", '""', f'"{"é" * 129}"'],
}


@pytest.mark.parametrize(
    ("field", "text"), [(field, text) for field, texts in WRONG.items() for text in texts]
)
def test_one_bad_row_is_named_by_field_and_row(field: str, text: str) -> None:
    bad = row(**{field.removesuffix("_id"): text})
    for body, lines in ((f"[{row()}, {bad}, {row()}]", False), (f"{row()}\n{bad}\n{row()}", True)):
        problem = refused(body.encode(), lines=lines)
        assert (problem.status, problem.field, problem.row) == (422, field, 1), problem.detail
    alone = refused(bad.encode())
    assert (alone.field, alone.row) == (field, None)


@pytest.mark.parametrize(
    ("body", "where"),
    [
        (b"", None),
        (b"{", None),
        (b"[" + row().encode() + b", x]", 1),
        (b"[" + row().encode(), None),
        (b"nul", None),
    ],
)
def test_what_is_no_json_is_malformed(body: bytes, where: int | None) -> None:
    problem = refused(body)
    assert problem.code == "malformed_json"
    assert where is None or problem.row == where


def test_deep_nesting_is_refused() -> None:
    assert refused(b"[" * 100_000).status in (400, 422)
