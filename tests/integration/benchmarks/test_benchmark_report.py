"""What the report says of figures, of a busy machine, and of histograms."""

import hashlib
import json
import lzma
import math
import pickle
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from benchmarks.__main__ import main
from benchmarks.data import datasets
from benchmarks.data.datasets import Shipped, cache_folder, fetch, synthetic
from benchmarks.errors import BenchmarkError
from benchmarks.harness import command, machine
from benchmarks.harness.command import Options, carry_out
from benchmarks.harness.report import Report, Row, Target, interleave, ratios
from benchmarks.harness.stack import running
from benchmarks.load.scrape import buckets, quantile

QUIET = machine.Watched(1.0, 0.0, 0.0)
BUSY = machine.Watched(1.0, 0.5, 0.0)


@pytest.mark.parametrize(
    ("value", "verdict"),
    [(1.0, "met"), (0.95, "floor"), (0.9, "floor"), (0.89, "missed"), (math.nan, "missed")],
)
def test_verdicts_of_more_is_better(value: float, verdict: str) -> None:
    assert Target(1.0, 0.9).verdict(value) == verdict


@pytest.mark.parametrize(("value", "verdict"), [(1.5, "met"), (1.6, "floor"), (2.1, "missed")])
def test_verdicts_of_less_is_better(value: float, verdict: str) -> None:
    assert Target(1.5, 2.0, higher_is_better=False).verdict(value) == verdict


def test_report_has_medians_spread_and_reasons(tmp_path: Path) -> None:
    rows = (
        Row("yardstick", "1/s", (10.0, 10.0, 30.0), guards=True),
        Row("work", "x", (0.5, 1.0, 2.0), Target(1.0, 0.9)),
        Row("other", "x", target=Target(1, 1), skipped="not installed"),
    )
    report = Report("name", rows, QUIET)
    written = json.loads(report.write(tmp_path).read_text())
    assert [row["median"] for row in written["rows"]] == [10.0, 1.0, None]
    assert [row["verdict"] for row in written["rows"]] == ["", "met", "skipped"]
    assert len(report.complaints) == 1
    console = Console(width=200, record=True, quiet=True)
    report.show(console)


@pytest.mark.parametrize(
    ("rounds", "trusted"),
    [
        ((36.0, 37.0, 27.0, 35.0, 36.5), True),  # one round was disturbed: the median does not show it
        ((36.0, 28.0, 27.0, 35.0, 36.5), False),
        ((30.0, 33.0, 36.0, 39.0, 42.0), False),
    ],
)
def test_a_yardstick_is_trusted_as_far_as_its_median_is(rounds: tuple[float, ...], trusted: bool) -> None:
    assert (
        Report("name", (Row("yardstick", "1/s", rounds, guards=True),), QUIET).complaints == []
    ) is trusted


def test_every_arm_runs_once_a_round_in_turned_order() -> None:
    order: list[str] = []
    interleave(3, {name: lambda name=name: order.append(name) for name in "ab"})  # type: ignore[misc]
    assert order == ["a", "b", "b", "a", "a", "b"]
    assert ratios([2.0, 6.0], [1.0, 2.0]) == (2.0, 3.0)


@pytest.mark.parametrize(("force", "code"), [(False, 3), (True, 0)])
def test_a_busy_machine_is_not_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, force: bool, code: int
) -> None:
    monkeypatch.setattr(machine.Watch, "since", lambda _: BUSY)
    options = Options(force=force, output=tmp_path)
    assert carry_out("name", lambda *_: [Row("work", "x", (1.0,))], options) == code
    assert (tmp_path / "name.json").exists() == force


def test_what_cannot_run_says_so_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def measure(_: Options, __: Console) -> Sequence[Row]:
        raise BenchmarkError("do this")

    assert carry_out("name", measure, Options(output=tmp_path)) == 2
    assert capsys.readouterr().err == "foldin bench name: do this\n"


def test_all_wrong_flags_of_a_benchmark_are_told_together(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--rounds", "0", "--scale", "big", "--rank"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("foldin bench fit: ")
    assert all(f"{flag} " in error for flag in ("--rounds", "--scale", "--rank"))


def test_own_work_is_not_taken_for_that_of_others() -> None:
    watch = machine.Watch()
    assert sum(range(1_000_000)) > 0
    watched = watch.since()
    assert watched.others is None or 0 <= watched.others <= 1


def test_a_process_that_ends_at_once_is_reported_with_its_last_words() -> None:
    with (
        pytest.raises(BenchmarkError, match="ended with code 7: last words"),
        running([sys.executable, "-c", "print('last words'); raise SystemExit(7)"], lambda: False),
    ):
        pass


def test_no_process_outlives_its_block() -> None:
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    with pytest.raises(ZeroDivisionError), running(command, lambda: True) as child:
        raise ZeroDivisionError
    assert child.code is not None


def test_quantile_of_a_histogram_between_two_scrapes() -> None:
    page = """# TYPE x histogram
x_bucket{le="1.0"} 10
x_bucket{le="2.0"} 20
x_bucket{le="+Inf"} 20
"""
    after = buckets(page, "x")
    assert quantile({}, after, 0.5) == pytest.approx(1.0)
    assert quantile({}, after, 0.75) == pytest.approx(1.5)
    assert math.isnan(quantile(after, after, 0.5))
    with pytest.raises(BenchmarkError, match="no histogram"):
        buckets(page, "y")


def test_data_is_kept_checked_and_read_from_the_cache(tmp_path: Path) -> None:
    data = b"1\t2\t3\t4\n"
    shipped = Shipped("nothing==0", "a/b", "kept", hashlib.sha256(data).hexdigest())
    (tmp_path / "kept").write_bytes(data)
    assert fetch(shipped, tmp_path) == data


def test_data_that_cannot_be_had_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(BenchmarkError, match="FOLDIN_CACHE"):
        fetch(Shipped("foldin-has-no-such-data==0", "a", "kept", "0"), tmp_path)


def test_cache_folder() -> None:
    assert cache_folder({"FOLDIN_CACHE": "/a", "XDG_CACHE_HOME": "/b"}) == Path("/a")
    assert cache_folder({"XDG_CACHE_HOME": "/b"}) == Path("/b/foldin")


def test_a_pickle_that_wants_to_do_something_is_refused() -> None:
    with pytest.raises(pickle.UnpicklingError, match="has no place"):
        datasets.read_frame(lzma.compress(pickle.dumps(Path)))


def test_synthetic_ratings_are_seeded_on_the_scale_and_without_doubles() -> None:
    one, two = (synthetic(50, 40, 500, seed=3) for _ in range(2))
    assert np.array_equal(one.ratings.value, two.ratings.value)
    assert np.isin(one.ratings.value, np.arange(1, 5.5, 0.5)).all()
    pairs = one.ratings.user_row.astype(np.int64) * 40 + one.ratings.item_row
    assert len(np.unique(pairs)) == len(pairs)


def test_scales_below_the_full_size_have_no_verdict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.Watch, "since", lambda _: QUIET)
    options = Options(scale=0.5, output=tmp_path)
    assert command.carry_out("name", lambda *_: [Row("work", "x", (1.0,), Target(1, 1))], options) == 0
    assert json.loads((tmp_path / "name.json").read_text())["rows"][0]["verdict"] == ""
