"""An import writes each rating, waits politely, stops in order, and goes on where it stopped."""

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from factors import Scale
from featurestore.ratings.context_schema import ContextField, ContextSchema
from foldin import importing
from foldin.address import running_stack
from foldin.errors import StoppedError
from foldin.files import reading
from foldin.importing import run_import
from foldin.preflight import locked
from foldin.progress import ImportProgress
from foldin.settings import FrontDoorSettings, ImportOptions
from foldin.sinks import Row, SinkBusyError
from processes.errors import CannotStartError


class FakeSink:
    """Keeps what is written. `before_write` may raise what a target may raise."""

    name = "the fake"
    batch_rows = 10

    def __init__(self, epoch: int = 1, before_write: Callable[[Sequence[Row]], None] | None = None) -> None:
        self.scale: Scale | None = Scale(1.0, 5.0)
        self.decides: Scale | None = None
        self.epoch = epoch
        self.rows: list[Row] = []
        self.closed = False
        self._before_write = before_write

    async def write(self, rows: Sequence[Row]) -> None:
        if self._before_write:
            self._before_write(rows)
        self.rows += rows

    async def decide(self, scale: Scale) -> Scale:
        self.decides = self.decides or scale
        return self.decides

    async def context_schema(self) -> ContextSchema:
        """As many categories as there may be, but for two."""
        return ContextSchema((ContextField("device", "category", tuple(f"d{k}" for k in range(254))),))

    async def close(self) -> None:
        self.closed = True


Before = Callable[[Sequence[Row]], None]


class Importing:
    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, state: str = "state") -> None:
        self.settings = FrontDoorSettings.from_environment({"XDG_STATE_HOME": str(folder / state)})
        self.file = folder / "ratings.csv"
        self.sink = FakeSink()

        async def open_fake(*_: object) -> FakeSink:
            return self.sink

        monkeypatch.setattr(importing, "open_sink", open_fake)

    def __call__(
        self, before_write: Before | None = None, *, sink: FakeSink | None = None, **options: Any
    ) -> int:
        self.sink = sink or FakeSink(before_write=before_write)
        given = ImportOptions(self.file, None, None, "auto", None, "refuse", resume=False)
        return run_import(replace(given, **options), self.settings)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Importing:
    monkeypatch.setattr(reading, "CHUNK_BYTES", 300)
    made = Importing(tmp_path, monkeypatch)
    rows = (f"u{n % 20},i{n // 20},{n % 5 + 1}\n" for n in range(200))
    made.file.write_text("user,item,rating\n" + "".join(rows))
    return made


def append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


def after(count: int, error: BaseException) -> Before:
    given = 0

    def look(rows: Sequence[Row]) -> None:
        nonlocal given
        given += len(rows)
        if given > count:
            raise error

    return look


def test_ratings_come_in_order(run: Importing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[tuple[int, int]] = []
    monkeypatch.setattr(ImportProgress, "update", lambda _, *at: shown.append(at))
    # Positions that cannot be kept cost nothing.
    (tmp_path / "blocked").write_text("a file where a folder would be")
    blocked = FrontDoorSettings.from_environment({"XDG_STATE_HOME": str(tmp_path / "blocked")})
    for settings in (run.settings, blocked):
        run.settings = settings
        assert run() == 0
        assert len(run.sink.rows) == 200
        for user in range(20):
            mine = [row[1] for row in run.sink.rows if row[0] == b"u%d" % user]
            assert mine == [b"i%d" % item for item in range(10)]
        assert run.sink.closed
        # The bar shows what is written, not what is read ahead.
        size, written = run.file.stat().st_size, shown[-40:]
        assert all(abs(position / size - ratings / 200) < 0.1 for position, ratings in written)
        assert written[-1] == (size, 200)


def test_bad_rows_refuse_the_file_or_are_left_out(run: Importing, capsys: pytest.CaptureFixture[str]) -> None:
    append(run.file, "ann,tea,9\n" * 30 + "ann,tea,none\nann,tea,1\n")
    with pytest.raises(
        CannotStartError, match=r"31 bad rows .* nothing was written: .*mend them, or .*--on-bad skip"
    ):
        run()
    assert (run.sink.rows, run.sink.closed) == ([], True)
    assert "line 202: rating 9 is off the scale" in capsys.readouterr().out
    assert run(on_bad="skip") == 0
    assert len(run.sink.rows) == 201
    said = capsys.readouterr().out
    assert "30 x rating is off the scale, 1 x rating is not a number" in said
    assert "31 bad rows were left out" in said


def test_of_a_pair_that_stands_more_than_once_the_latest_counts(
    run: Importing, capsys: pytest.CaptureFixture[str]
) -> None:
    # Each pair in three parts of the file; the latest is neither first nor last.
    rows = [(n % 50, (n // 50) * 7 % 3, n % 5 + 1) for n in range(150)]
    text = "".join(f"u{pair % 10},i{pair // 10},{rating},{1000 + time}\n" for pair, time, rating in rows)
    run.file.write_text("user,item,rating,timestamp\n" + text + "u0,new,1,5\nu0,new,2,5\n")
    latest = {(b"u%d" % (p % 10), b"i%d" % (p // 10)): (float(r), 1000.0 + t) for p, t, r in rows if t == 2}
    latest[b"u0", b"new"] = (2.0, 5.0)  # at the same time, the later row
    assert run(on_bad="skip") == 0
    assert "51 pairs stand more than once: the latest counts." in capsys.readouterr().out
    assert {row[:2]: row[2:4] for row in run.sink.rows} == latest
    assert len(run.sink.rows) == len(latest)
    # One that goes on does not write what a row before has replaced.
    with pytest.raises(StoppedError):
        run(after(20, StoppedError("stopped")))
    written = run.sink.rows
    assert run(resume=True) == 0
    assert {row[:2]: row[2:4] for row in written + run.sink.rows} == latest
    told: list[Any] = []
    run.settings = replace(run.settings, emit=told.append)
    assert run(dry_run=True) == 0
    assert told[0]["ratings"] == len(latest)


def test_a_dry_run_tells_what_an_import_would_write_and_writes_nothing(
    run: Importing, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Any] = []
    run.settings = replace(run.settings, emit=told.append)
    append(run.file, "ann,tea,9\n")
    with pytest.raises(CannotStartError, match=r"1 bad rows .* nothing was written"):
        run(dry_run=True)
    assert run(dry_run=True, on_bad="skip") == 0
    assert (run.sink.rows, run.sink.closed, run.sink.decides) == ([], True, None)
    expected = {"target": "the fake", "written": 0, "left_out": 1, "ratings": 200, "users": 20, "items": 10}
    assert [{**each, **expected, "scale": "1:5"} for each in told] == told != []
    assert "200 ratings of 20 users and 10 items on the scale 1:5 would be" in capsys.readouterr().out

    async def none_runs(*_: object) -> FakeSink:
        raise CannotStartError("no API answers")

    monkeypatch.setattr(importing, "open_sink", none_runs)
    # The file by itself: its scale is that which an empty store would get.
    assert run(dry_run=True) == 0
    assert (told[-1]["target"], told[-1]["ratings"], told[-1]["scale"]) == (None, 201, "1:9")
    with pytest.raises(CannotStartError, match="no API answers"):
        run(dry_run=True, url="http://localhost:1")


def test_a_store_without_a_scale_gets_the_files(run: Importing, capsys: pytest.CaptureFixture[str]) -> None:
    def undecided() -> FakeSink:
        sink = FakeSink()
        sink.scale = None
        return sink

    run.file.write_text("userId,movieId,rating\n1,2,0.5\n1,3,4.5\n1,4,5.0\n")
    assert run(sink=undecided()) == 0
    assert (run.sink.decides, len(run.sink.rows)) == (Scale(0.5, 5.0, 0.5), 3)
    assert "The scale of the fake is 0.5:5:0.5 from now on, for good." in capsys.readouterr().out
    # A person knows better, or not; what lies between the steps is taken, as by the API.
    assert run(sink=undecided(), scale="0:10:1") == 0
    assert (run.sink.decides, len(run.sink.rows)) == (Scale(0.0, 10.0, 1.0), 3)
    assert "between the steps of the scale 0:10:1, such as 0.5, are kept" in capsys.readouterr().out
    with pytest.raises(CannotStartError, match="must have its low end under its high end, not '10:0'"):
        run(sink=undecided(), scale="10:0")
    # Another import was first: the file is held to what that one has decided, before anything is written.
    late = undecided()
    late.decides = Scale(1.0, 5.0)
    with pytest.raises(CannotStartError, match=r"1 bad rows .*the scale is 1:5"):
        run(sink=late)
    assert late.rows == []
    with pytest.raises(
        CannotStartError, match=r"from 0\.5 to 5, the scale is 1:5; .*FOLDIN_SCALE=0\.5:5:0\.5"
    ):
        run()
    # A bad row decides none.
    run.file.write_text("userId,movieId,rating\n1,2,0.5\n1,3,many\n")
    bad = undecided()
    with pytest.raises(CannotStartError, match="1 bad rows"):
        run(sink=bad)
    assert (bad.decides, bad.rows) == (None, [])
    assert run(sink=undecided(), on_bad="skip") == 0
    assert run.sink.decides == Scale(0.5, 5.0)


@pytest.mark.parametrize(("full", "words"), [(True, "is a trainer running"), (False, "is it running")])
def test_a_target_that_stays_busy_is_given_up_and_gone_on_with(
    run: Importing, monkeypatch: pytest.MonkeyPatch, full: bool, words: str
) -> None:
    monkeypatch.setattr(importing, "GIVE_UP_FULL_S", 0.05)
    monkeypatch.setattr(importing, "GIVE_UP_SILENT_S", 0.05)
    with pytest.raises(StoppedError, match=rf"{words}\?; .*go on with: foldin import .*--resume"):
        run(after(100, SinkBusyError("not now", 0.001, full=full)))
    stopped = run.sink.rows
    assert run(resume=True) == 0
    assert len(stopped) > 0
    assert len(run.sink.rows) < 200
    assert len({row[:2] for row in (*stopped, *run.sink.rows)}) == 200


def test_a_running_stack_is_found_by_its_file(tmp_path: Path) -> None:
    assert running_stack(tmp_path) is None
    content = {"pid": os.getpid(), "store": {"FOLDIN_REDIS_URL": "unix:///s"}}
    data, copy = tmp_path / "data", tmp_path / "copy"
    data.mkdir()
    with locked(data):
        (data / "stack.json").write_text(json.dumps(content))
        assert running_stack(data) == {"FOLDIN_REDIS_URL": "unix:///s"}
        # As `cp -r` leaves it: what is done to the copy is not to be done to what was copied.
        shutil.copytree(data, copy)
        assert running_stack(copy) is None
        (data / "lock").unlink()
        assert running_stack(data) == {"FOLDIN_REDIS_URL": "unix:///s"}
        (data / "stack.json").write_text(json.dumps({**content, "pid": 2**22 + 1}))
        assert running_stack(data) is None
        (data / "stack.json").write_text("[]")
        assert running_stack(data) is None
