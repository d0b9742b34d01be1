"""`foldin evaluate FILE` as a process: its table and files, killed and resumed, and what it refuses."""

import csv
import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from evaluation.offline import splits
from evaluation.offline.online import predict_then_learn
from factors import FitSettings
from foldin.files.dataset import FileRules, read_files
from tests.support.waiting import wait_until

ROOT = Path(__file__).resolve().parents[3]
ENGINES = "auto,global-mean,bias"
CHEAP = "global-mean,item-mean,user-mean,bias"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


@pytest.fixture
def ratings(tmp_path: Path) -> Path:
    """A small world of 40 users and 30 items, with times."""
    rng = np.random.default_rng(5)
    score = (
        3 + rng.normal(0, 0.8, 40)[:, None] + rng.normal(0, 0.8, 30)[None, :] + rng.normal(0, 0.5, (40, 30))
    )
    value = np.clip(np.rint(score), 1, 5).astype(int)
    lines = [
        f"u{p // 30},i{p % 30},{value[p // 30, p % 30]},{j}"
        for j, p in enumerate(rng.permutation(1200)[:700])
    ]
    path = tmp_path / "ratings.csv"
    path.write_text("user,item,rating,timestamp\n" + "\n".join(lines) + "\n")
    return path


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "foldin", "evaluate", *map(str, arguments)]


def evaluate(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), cwd=ROOT, capture_output=True, text=True, timeout=100, check=False
    )


def test_a_table_a_csv_and_pictures(ratings: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = evaluate(ratings, "--engines", ENGINES, "--out", out)
    assert done.returncode == 0, done.stderr + done.stdout
    for part in ("700 ratings of 30 items by 40 users", "scale 1:5:1", "Foldin", "global mean"):
        assert part in done.stdout
    with (out / "summary.csv").open(newline="") as file:
        rows = {row["engine"]: row for row in csv.DictReader(file)}
    assert float(rows["auto"]["rmse"]) < float(rows["global-mean"]["rmse"])
    assert 0.7 < float(rows["auto"]["coverage"]) <= 1
    for name in ("learning-curve.svg", "calibration.svg"):
        assert (out / name).read_text().startswith("<?xml")


def test_what_is_said_of_the_items_is_learned(ratings: Path, tmp_path: Path) -> None:
    # Half of the items, of which one kind is liked by far more.
    lines = ratings.read_text().splitlines()
    ratings.write_text("\n".join([lines[0], *map(_with_kinds, lines[1:])]) + "\n")
    items, out = tmp_path / "items.csv", tmp_path / "out"
    items.write_text("item_id,kind,year\n" + "".join(f"i{k},{_kind(k)},{1950 + k}\n" for k in range(28)))
    engines = "auto:attributes,global-mean"
    done = evaluate(ratings, "--items", items, "--engines", engines, "--out", out)
    assert done.returncode == 0, done.stderr + done.stdout
    assert "describes 28 of 30 items" in done.stdout
    with (out / "summary.csv").open(newline="") as file:
        rows = {row["engine"]: row for row in csv.DictReader(file)}
    assert float(rows["auto:attributes"]["rmse"]) < float(rows["global-mean"]["rmse"])


def test_what_is_said_of_the_users_is_learned(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    # A third of the users has one rating: only what is said of them tells that the old rate far lower.
    counts = np.where(np.arange(90) % 3, 15, 1)
    lines = [
        f"u{user},i{item},{int(np.clip(np.rint(4.5 - 3 * (user % 2) + rng.normal(0, 0.4)), 1, 5))}"
        for user, n in enumerate(counts)
        for item in rng.permutation(30)[:n]
    ]
    path, users, out = tmp_path / "ratings.csv", tmp_path / "users.csv", tmp_path / "out"
    path.write_text("user,item,rating\n" + "\n".join(lines) + "\n")
    users.write_text("user_id,age\n" + "".join(f"u{k},{20 + 40 * (k % 2)}\n" for k in range(90)))
    done = evaluate(path, "--users", users, "--engines", "auto:attributes,auto", "--out", out)
    assert done.returncode == 0, done.stderr + done.stdout
    with (out / "summary.csv").open(newline="") as file:
        rows = {row["engine"]: row for row in csv.DictReader(file)}
    assert float(rows["auto:attributes"]["rmse"]) < 0.97 * float(rows["auto"]["rmse"])


def test_what_was_told_with_ratings_is_learned(tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    at, mood = rng.normal(0, 1, (40, 30)), rng.integers(0, 2, (40, 30))
    score = 3 + rng.normal(0, 0.5, 40)[:, None] + rng.normal(0, 0.3, (40, 30)) + 0.7 * at + 0.8 * mood
    value = np.clip(np.rint(score), 1, 5).astype(int)
    moods = np.where(mood, "calm", "wild").flat
    lines = [
        f"u{p // 30},i{p % 30},{value.flat[p]},{j},{at.flat[p]:.3f},{moods[p]}"
        for j, p in enumerate(rng.permutation(1200)[:900])
    ]
    path, out = tmp_path / "ratings.csv", tmp_path / "out"
    path.write_text("user,item,rating,timestamp,context.at,context.mood\n" + "\n".join(lines) + "\n")
    # By default with and without.
    done = evaluate(path, "--out", out)
    assert done.returncode == 0, done.stderr + done.stdout
    with (out / "summary.csv").open(newline="") as file:
        rows = {row["engine"]: row for row in csv.DictReader(file)}
    assert float(rows["auto:context"]["rmse"]) < 0.9 * float(rows["auto"]["rmse"])
    # Rating by rating, too, from the first refit on.
    question = splits.in_time_order(read_files(path, None, FileRules()).data).question()
    settings = FitSettings(question.scale(), rank=2)
    errors = {}
    for context in (True, False):
        rating, _, note = predict_then_learn(
            question, settings, 1, context=context, refit_events=300, fold_events=50
        )
        assert note == "2 warm refits"
        errors[context] = float(np.square(rating - question.train_value)[300:].mean())
    assert errors[True] < 0.8 * errors[False]


def _kind(item: int) -> str:
    return "liked" if item % 2 else "other"


def _with_kinds(line: str) -> str:
    user, item, _, moment = line.split(",")
    return f"{user},{item},{4 if int(item[1:]) % 2 else 2},{moment}"


def test_lists_beside_those_of_popularity(ratings: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ("--ranking", "--split", "leave-last-k", "-k", 3, "--engines", "auto,popularity")
    done = evaluate(ratings, *arguments, "--out", out)
    assert done.returncode == 0, done.stderr + done.stdout
    for part in ("last 3", "graded NDCG@10", "coverage@10", "popularity"):
        assert part in done.stdout
    with (out / "summary.csv").open(newline="") as file:
        rows = {row["engine"]: row for row in csv.DictReader(file)}
    assert all(0 < float(row["ndcg_100"]) <= 1 for row in rows.values())
    assert float(rows["auto"]["rmse"]) > 0
    assert rows["popularity"]["rmse"] == ""


def test_killed_and_resumed_nothing_that_was_finished_is_computed_again(
    ratings: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    arguments = (ratings, "--engines", CHEAP, "--out", out)
    lines = out / "lines.jsonl"
    running = subprocess.Popen(
        command(*arguments), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        wait_until(lambda: lines.is_file() and len(lines.read_text().split()) > 0, "a finished line")
    finally:
        running.send_signal(signal.SIGKILL)
        running.wait(10)
    kept = [json.loads(text) for text in lines.read_text().splitlines() if text.endswith("}")]
    assert kept
    done = evaluate(*arguments, "--resume")
    assert done.returncode == 0, done.stderr + done.stdout
    assert done.stdout.count("(kept from before)") == len(kept)
    whole = [json.loads(text) for text in lines.read_text().splitlines() if text.endswith("}")]
    assert len({document["key"] for document in whole}) == len(whole) == 4
    assert whole[: len(kept)] == kept


def test_each_rating_before_it_is_learned(ratings: Path, tmp_path: Path) -> None:
    done = evaluate(
        ratings, "--split", "prequential", "--engines", "bias,popularity", "--out", tmp_path / "out"
    )
    assert done.returncode == 0, done.stderr + done.stdout
    assert "in time order" in done.stdout
    assert "learns from whole sets" in done.stdout


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
    from foldin.__main__ import main

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
