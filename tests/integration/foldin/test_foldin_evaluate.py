"""`foldin evaluate FILE` as a process: its table and files, killed and resumed, and what it refuses."""

import csv
from pathlib import Path

import numpy as np
import pytest

from foldin.__main__ import main
from tests.support.stacks import foldin

ENGINES = "auto,global-mean,bias"


@pytest.fixture
def ratings(tmp_path: Path) -> Path:
    rng = np.random.default_rng(5)
    score = 3 + rng.normal(0, 0.8, 40)[:, None] + rng.normal(0, 0.8, 30)[None] + rng.normal(0, 0.5, (40, 30))
    value = np.clip(np.rint(score), 1, 5).astype(int)
    lines = [
        f"u{p // 30},i{p % 30},{value[p // 30, p % 30]},{j}"
        for j, p in enumerate(rng.permutation(1200)[:700])
    ]
    path = tmp_path / "ratings.csv"
    path.write_text("user,item,rating,timestamp\n" + "\n".join(lines) + "\n")
    return path


@pytest.mark.slow
def test_a_table_a_csv_and_pictures_of_ratings_and_of_lists(ratings: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = foldin("evaluate", ratings, "--engines", ENGINES, "--out", out)
    assert done.returncode == 0, done.stderr + done.stdout
    for part in ("700 ratings of 30 items by 40 users", "scale 1:5:1", "Foldin", "global mean"):
        assert part in done.stdout
    with (out / "summary.csv").open(newline="") as file:
        rows = {row["engine"]: row for row in csv.DictReader(file)}
    assert float(rows["auto"]["rmse"]) < float(rows["global-mean"]["rmse"])
    assert 0.7 < float(rows["auto"]["coverage"]) <= 1
    for name in ("learning-curve.svg", "calibration.svg"):
        assert (out / name).read_text().startswith("<?xml")

    lists = tmp_path / "lists"
    arguments = ("--ranking", "--split", "leave-last-k", "-k", 3, "--engines", "auto,popularity")
    done = foldin("evaluate", ratings, *arguments, "--out", lists)
    assert done.returncode == 0, done.stderr + done.stdout
    with (lists / "summary.csv").open(newline="") as file:
        rows = {row["engine"]: row for row in csv.DictReader(file)}
    assert all(0 < float(row["ndcg_100"]) <= 1 for row in rows.values())
    assert rows["popularity"]["rmse"] == ""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("nowhere.csv",), "nowhere.csv cannot be read"),
        (("{file}", "--engines", "auto:rank=x"), "no option rank=x"),
        (("{file}", "--share", "2"), "between 0 and 1"),
        (("{file}", "--split", "leave-k-out", "-k", "999"), "smaller -k"),
        (("{file}", "--test", "{file}"), "two different files"),
        (("{file}", "--out", "{file}/x"), "another --out"),
        (("{file}", "--scale", "1:3"), "--scale"),
        (("{file}", "--items", "{folder}/bare.csv"), "says nothing that tells items apart"),
        (("{file}", "--items", "{file}.none"), "cannot be read"),
        (("{file}", "--users", "{folder}/users.csv"), "says nothing that tells users apart"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(
    ratings: Path, arguments: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (ratings.parent / "users.csv").write_text("user_id,age\nu0,\nu1,\n")
    (ratings.parent / "bare.csv").write_text("item_id,title\ni0,Dune\ni1,Emma\n")
    given = [
        argument.replace("{file}", str(ratings)).replace("{folder}", str(ratings.parent))
        for argument in arguments
    ]
    try:
        code = main(["evaluate", *given])
    except SystemExit as exc:  # argparse
        code = int(exc.code or 0)
    assert code == 2
    (said,) = capsys.readouterr().err.strip().splitlines()
    assert words in said
