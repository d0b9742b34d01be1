"""Ids, queries and bodies at the edge: what passes, and what is named where something does not."""

from typing import Any

import numpy as np
import pytest

from factors import Scale
from service.http.parsing import Body, Query, body_ids, checked_id, path_id, whole_number
from service.http.problems import KINDS, Problem
from service.routes.ratings import RatingIn, check_scale, parse_ratings
from service.routes.train import TrainBody, checked_history

SCALE = Scale(1.0, 5.0)


def refused(body: bytes, *, lines: bool = False) -> Problem:
    with pytest.raises(Problem) as caught:
        parse_ratings(body, SCALE, 1e9, lines=lines)
    return caught.value


def row(user: str = '"u"', item: str = '"i"', rating: str = "3", more: str = "") -> str:
    return f'{{"user_id": {user}, "item_id": {item}, "rating": {rating}{more}}}'


@pytest.mark.parametrize("raw", [b"a", b"x" * 256, "é".encode(), b"\x00", b" ", b"a/b"])
def test_ids_of_1_to_256_bytes_pass(raw: bytes) -> None:
    assert checked_id(raw, "user_id") == raw


@pytest.mark.parametrize("raw", [b"", b"x" * 257, "é".encode() * 129, b"\xff", b"a\xc3"])
def test_other_ids_are_refused_by_field(raw: bytes) -> None:
    with pytest.raises(Problem) as caught:
        checked_id(raw, "user_id")
    assert (caught.value.status, caught.value.field) == (400, "user_id")


def test_ids_in_paths_are_decoded_once() -> None:
    assert path_id("/users/a%2Fb%2525?x=/y", 1, "user_id") == b"a/b%25"
    with pytest.raises(Problem):
        path_id("/users/%ff", 1, "user_id")


def test_queries_take_synonyms_and_plus_for_space() -> None:
    query = Query("/predict?user=a+b%2B&item_id=%C3%A9")
    assert query.id("user_id", "user") == b"a b+"
    assert query.id("item_id", "item") == "é".encode()


@pytest.mark.parametrize("path", ["/p?user=1&user_id=2", "/p?user=1&user=2"])
def test_a_parameter_given_twice_is_refused(path: str) -> None:
    with pytest.raises(Problem) as caught:
        Query(path).id("user_id", "user")
    assert (caught.value.code, caught.value.field) == ("invalid_parameter", "user_id")


@pytest.mark.parametrize("text", ["", "+1", " 1", "1_0", "1.0", "\u0663", "0x1", "1e3", "-1", "11", "9" * 30])
def test_whole_numbers_are_plain(text: str) -> None:
    with pytest.raises(Problem):
        whole_number(text, "n", 0, 10)


@pytest.mark.parametrize("text", ["nan", "inf", "1_0", "1e999", "", "\u0661"])
def test_numbers_of_queries_are_finite(text: str) -> None:
    with pytest.raises(Problem):
        Query(f"/p?timestamp={text}").number("timestamp")


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


def test_bytes_that_are_not_utf8_are_named() -> None:
    bad = row().encode().replace(b'"i"', b'"i\xff"')
    problem = refused(b"[" + row().encode() + b"," + bad + b"]")
    assert (problem.field, problem.row) == ("item_id", 1)


@pytest.mark.parametrize("stamp", ["1e17", "-1e17", "NaN", '"now"', "true"])
def test_bad_timestamps_are_named(stamp: str) -> None:
    problem = refused(f"[{row(more=f', {chr(34)}timestamp{chr(34)}: {stamp}')}]".encode())
    assert (problem.field, problem.row) == ("timestamp", 0)


def test_a_missing_field_is_named() -> None:
    problem = refused(f'[{row()}, {{"user_id": "u", "rating": 3}}]'.encode())
    assert (problem.field, problem.row) == ("item_id", 1)


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


def test_something_after_the_array_is_malformed() -> None:
    assert refused(b"[" + row().encode() + b"] x").code == "malformed_json"
    assert refused(b"[" + row().encode() + b",]").code == "malformed_json"


def test_digits_without_end_do_not_keep_a_body_from_being_refused() -> None:
    """Python refuses to read an integer of so many."""
    digits = "9" * 5_000
    assert refused(f"[{row(more=f', {chr(34)}x{chr(34)}: {digits}')}, {{]".encode()).field == "x"
    with pytest.raises(Problem) as caught:
        Body(dict[str, Any]).decode(f'{{"age": {digits}}}'.encode())
    assert (caught.value.code, caught.value.field) == ("invalid_body", "age")


def test_deep_nesting_is_refused() -> None:
    assert refused(b"[" * 100_000).status in (400, 422)


def test_more_rows_than_a_call_takes_are_refused() -> None:
    problem = refused(("[" + ",".join([row()] * 10_001) + "]").encode())
    assert problem.code == "too_many_rows"


@pytest.mark.parametrize("value", [0.999, 5.001, float("nan"), float("inf")])
def test_ratings_off_the_scale_are_named(value: float) -> None:
    with pytest.raises(Problem) as caught:
        check_scale([1.0, 5.0, value], SCALE, "rating")
    assert caught.value.row == 2


def test_numbers_count_as_their_decimal_text() -> None:
    assert body_ids([7, "7", -1, 10**30], "user_id") == [b"7", b"7", b"-1", b"1" + b"0" * 30]


def test_paths_inside_nested_bodies_are_told() -> None:
    body: Body[list[list[RatingIn]]] = Body(list[list[RatingIn]])
    with pytest.raises(Problem) as caught:
        body.decode(f"[[{row()}], [{row()}, {row(rating='true')}]]".encode())
    assert (caught.value.field, caught.value.row) == ("rating", 1)


def test_every_code_is_a_client_or_server_error() -> None:
    assert all(400 <= kind.status < 600 for kind in KINDS.values())


def test_retry_after_is_never_zero() -> None:
    assert Problem("stream_full", "x", retry_after_s=0.01).headers["Retry-After"] == "1"


def test_a_history_is_columns_in_its_order() -> None:
    body = TrainBody(2, 3, ["ann", 1, 0], [2, 0, 1], [5.0, 1.0, 4.0])
    item_ids, ratings = checked_history(body, SCALE)
    assert item_ids == [b"0", b"1", b"2"]
    assert (ratings.user_id, ratings.item_id) == ([b"ann", b"1", b"0"], [b"2", b"0", b"1"])
    assert np.isnan(ratings.time).all()
    last = ratings.part(slice(1, 5))
    assert (last.user_id, last.item_id, last.rating.tolist()) == ([b"1", b"0"], [b"0", b"1"], [1.0, 4.0])
    assert len(last) == len(last.time) == 2
