"""Files of ratings become data sets: the same from every kind of file, a bad one refused in one line."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from evaluation.offline import splits
from factors import Scale
from foldin.files.attributes import side_columns
from foldin.files.dataset import FileRules, read_files
from processes.errors import CannotStartError


def test_the_last_rating_of_a_pair_counts_and_a_second_file_wins(tmp_path: Path) -> None:
    first, second = tmp_path / "a.csv", tmp_path / "b.csv"
    first.write_text("user,item,rating\n" + "".join(f"u,{j},{1 + j % 5}\n" for j in range(12)) + "u,3,2\n")
    second.write_text("user,item,rating\nu,0,5\nv,1,4\n")
    read = read_files(first, second, FileRules())
    assert read.n_first == 11
    assert len(read.data.ratings.value) == 13
    assert "2 ratings were replaced" in read.remarks[0]
    assert np.isnan(read.data.ratings.time).all()
    split = splits.given_test(read.data, read.n_first)
    assert split.truth().tolist() == [5, 4]


def test_what_cannot_be_used_is_refused_in_one_line(tmp_path: Path) -> None:
    sevens = "user,item,rating\n" + "".join(f"u,{j},7\n" for j in range(20))
    path = tmp_path / "bad.csv"
    for text, rules, words in (
        ("user,item,rating\nu,i,x\n", FileRules(), "1 bad rows in"),
        ("user,item,rating\nu,i,3\n", FileRules(), "has 1 ratings"),
        ("a,b,c\nu,i,3\n", FileRules(), "--columns"),
        (sevens, FileRules(scale=Scale(1, 5)), "--scale"),
    ):
        path.write_text(text)
        with pytest.raises(CannotStartError, match=f"^[^\n]*{words}[^\n]*$"):
            read_files(path, None, rules)


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
