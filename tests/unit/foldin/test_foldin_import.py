"""An import writes each rating, waits politely, stops in order, and goes on where it stopped.

The target is a fake.
"""

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest

from factors import Scale
from featurestore.ratings.context_schema import ContextField, ContextSchema
from foldin import importing
from foldin.address import running_stack
from foldin.errors import ImportStoppedError
from foldin.files import reading
from foldin.importing import run_import
from foldin.preflight import locked
from foldin.settings import FrontDoorSettings, ImportOptions
from foldin.sinks import Row, RowRefusedError, SinkBusyError, open_sink
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
        """Keep the rows, or raise."""
        if self._before_write:
            self._before_write(rows)
        self.rows += rows

    async def decide(self, scale: Scale) -> Scale:
        """Take the scale, unless another one was there first."""
        self.decides = self.decides or scale
        return self.decides

    async def context_schema(self) -> ContextSchema:
        """As many categories as there may be, but for two."""
        return ContextSchema((ContextField("device", "category", tuple(f"d{k}" for k in range(254))),))

    async def close(self) -> None:
        """Remember it."""
        self.closed = True


@pytest.fixture
def settings(tmp_path: Path) -> FrontDoorSettings:
    """Settings whose positions are kept below the test's folder."""
    return FrontDoorSettings.from_environment({"XDG_STATE_HOME": str(tmp_path / "state")})


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """200 ratings of 20 users, read in short stretches."""
    monkeypatch.setattr(reading, "CHUNK_BYTES", 300)
    path = tmp_path / "ratings.csv"
    path.write_text("user,item,rating\n" + "".join(f"u{n % 20},i{n // 20},{n % 5 + 1}\n" for n in range(200)))
    return path


def options(
    path: Path, *, on_bad: Literal["refuse", "skip"] = "refuse", resume: bool = False
) -> ImportOptions:
    """What the command line would give."""
    return ImportOptions(path, None, None, "auto", None, on_bad, resume)


def use(monkeypatch: pytest.MonkeyPatch, sink: FakeSink) -> FakeSink:
    """Let imports go to this sink."""

    async def open_fake(*_: object) -> FakeSink:
        return sink

    monkeypatch.setattr(importing, "open_sink", open_fake)
    return sink


def test_every_rating_is_written_each_user_s_in_order(
    file: Path,
    settings: FrontDoorSettings,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    sink = use(monkeypatch, FakeSink())
    assert run_import(options(file), settings) == 0
    assert len(sink.rows) == 200
    for user in range(20):
        mine = [row[1] for row in sink.rows if row[0] == b"u%d" % user]
        assert mine == [b"i%d" % item for item in range(10)]
    assert sink.closed
    assert "200 ratings written to the fake" in capsys.readouterr().out


def test_a_file_that_grows_meanwhile_is_not_said_to_be_imported(
    file: Path, settings: FrontDoorSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def append(_: Sequence[Row]) -> None:
        with file.open("a") as more:
            more.write("ann,tea,none\n")

    sink = use(monkeypatch, FakeSink(before_write=append))
    with pytest.raises(ImportStoppedError, match="has changed while it was read"):
        run_import(options(file), settings)
    assert len(sink.rows) == 200


def test_a_bad_row_refuses_the_whole_file_before_anything_is_written(
    file: Path,
    settings: FrontDoorSettings,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with file.open("a") as more:
        more.write("ann,tea,none\n")
    sink = use(monkeypatch, FakeSink())
    with pytest.raises(
        CannotStartError, match=r"1 bad rows .* nothing was written: mend them, or .*--on-bad skip"
    ):
        run_import(options(file), settings)
    assert sink.rows == []
    assert sink.closed
    assert "line 202: rating is not a number: 'none'" in capsys.readouterr().out


def test_contexts_that_do_not_fit_are_known_before_anything_is_written(
    tmp_path: Path,
    settings: FrontDoorSettings,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "ratings.csv"
    rows = "".join(f"u{n % 20},i{n},3,new {n % 4},\n" for n in range(200))
    file.write_text("user,item,rating,context.device,context.mood\n" + rows)
    sink, calls = use(monkeypatch, FakeSink(before_write=lambda rows: calls.append(len(rows)))), list[int]()
    with pytest.raises(CannotStartError, match="100 bad rows"):
        run_import(options(file), settings)
    assert calls == []
    said = capsys.readouterr().out
    assert "line 4: context.device: 'device' has 256 categories" in said
    # None is sent to be refused.
    assert run_import(options(file, on_bad="skip"), settings) == 0
    assert sum(calls) == len(sink.rows) == 100
    said = capsys.readouterr().out
    assert "100 bad rows were left out" in said
    assert "No row gives anything in context.mood." in said
    named = replace(options(file), columns={"user": "user", "item": "item", "rating": "rating"})
    assert run_import(named, settings) == 0
    assert "--columns does not name them: context.device, context.mood" in capsys.readouterr().out


def test_a_store_without_a_scale_gets_that_of_the_file(
    tmp_path: Path,
    settings: FrontDoorSettings,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path, sink = tmp_path / "ratings.csv", use(monkeypatch, FakeSink())
    path.write_text("userId,movieId,rating\n1,2,0.5\n1,3,4.5\n1,4,5.0\n")
    sink.scale = None
    assert run_import(options(path), settings) == 0
    assert (sink.decides, len(sink.rows)) == (Scale(0.5, 5.0, 0.5), 3)
    assert "The scale of the fake is 0.5:5:0.5 from now on, for good." in capsys.readouterr().out
    # A person knows better, or not.
    sink = use(monkeypatch, FakeSink())
    sink.scale = None
    assert run_import(replace(options(path), scale="0:10"), settings) == 0
    assert sink.decides == Scale(0.0, 10.0)
    with pytest.raises(CannotStartError, match="must have its low end under its high end, not '10:0'"):
        run_import(replace(options(path), scale="10:0"), settings)
    # Another import was first: the file is held to what that one has decided, before anything is written.
    sink.decides, sink.rows = Scale(1.0, 5.0), []
    with pytest.raises(CannotStartError, match=r"1 bad rows .*the scale is 1:5"):
        run_import(options(path), settings)
    assert sink.rows == []


def test_a_bad_row_decides_no_scale(
    tmp_path: Path, settings: FrontDoorSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, sink = tmp_path / "ratings.csv", use(monkeypatch, FakeSink())
    path.write_text("userId,movieId,rating\n1,2,0.5\n1,3,many\n")
    sink.scale = None
    with pytest.raises(CannotStartError, match="1 bad rows"):
        run_import(options(path), settings)
    assert (sink.decides, sink.rows) == (None, [])
    assert run_import(options(path, on_bad="skip"), settings) == 0
    assert sink.decides == Scale(0.5, 5.0)


def test_off_the_scale_says_which_scale_would_take_it(
    tmp_path: Path, settings: FrontDoorSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ratings.csv"
    path.write_text("userId,movieId,rating\n1,2,0.5\n1,3,4.5\n1,4,5.0\n")
    use(monkeypatch, FakeSink())
    with pytest.raises(
        CannotStartError, match=r"from 0\.5 to 5, the scale is 1:5; .*FOLDIN_SCALE=0\.5:5:0\.5"
    ) as found:
        run_import(options(path), settings)
    assert "\n" not in str(found.value)


def test_skip_leaves_bad_rows_out_and_reports_them(
    file: Path,
    settings: FrontDoorSettings,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with file.open("a") as more:
        more.write("ann,tea,9\n" * 30 + "ann,tea,none\nann,tea,1\n")
    sink = use(monkeypatch, FakeSink())
    assert run_import(options(file, on_bad="skip"), settings) == 0
    assert len(sink.rows) == 201
    said = capsys.readouterr().out
    assert "line 202: rating 9 is off the scale" in said
    assert "30 x rating is off the scale, 1 x rating is not a number" in said
    assert "31 bad rows were left out" in said


def test_a_busy_target_is_waited_for(
    file: Path,
    settings: FrontDoorSettings,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    calls = 0

    def busy_at_times(_: Sequence[Row]) -> None:
        nonlocal calls
        calls += 1
        if calls % 3 == 0:
            raise SinkBusyError("the trainer archives what it has", 0.001, full=True)

    sink = use(monkeypatch, FakeSink(before_write=busy_at_times))
    assert run_import(options(file), settings) == 0
    assert len(sink.rows) == 200
    assert "waiting: the trainer archives" in capsys.readouterr().out


@pytest.mark.parametrize(("full", "words"), [(True, "is a trainer running"), (False, "is it running")])
def test_a_target_that_stays_busy_is_given_up_and_gone_on_with(
    file: Path, settings: FrontDoorSettings, monkeypatch: pytest.MonkeyPatch, full: bool, words: str
) -> None:
    monkeypatch.setattr(importing, "GIVE_UP_FULL_S", 0.05)
    monkeypatch.setattr(importing, "GIVE_UP_SILENT_S", 0.05)
    given = 0

    def full_after_100(rows: Sequence[Row]) -> None:
        nonlocal given
        given += len(rows)
        if given > 100:
            raise SinkBusyError("not now", 0.001, full=full)

    stopped = use(monkeypatch, FakeSink(before_write=full_after_100))
    with pytest.raises(
        ImportStoppedError, match=rf"{words}\?; .*go on with: foldin import .*--resume"
    ) as found:
        run_import(options(file), settings)
    assert "\n" not in str(found.value)
    resumed = use(monkeypatch, FakeSink())
    assert run_import(options(file, resume=True), settings) == 0
    assert len(stopped.rows) > 0
    assert len(resumed.rows) < 200
    pairs = {row[:2] for row in (*stopped.rows, *resumed.rows)}
    assert len(pairs) == 200


def test_going_on_begins_anew_where_that_is_needed(
    file: Path,
    settings: FrontDoorSettings,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    use(monkeypatch, FakeSink())
    assert run_import(options(file, resume=True), settings) == 0
    assert "begins at the start" in capsys.readouterr().out

    def refuse(rows: Sequence[Row]) -> None:
        if rows[0][1] != b"i0":
            raise ImportStoppedError("no more")

    use(monkeypatch, FakeSink(before_write=refuse))
    with pytest.raises(ImportStoppedError):
        run_import(options(file), settings)
    newer = use(monkeypatch, FakeSink(epoch=2))
    assert run_import(options(file, resume=True), settings) == 0
    assert len(newer.rows) == 200
    assert "A new history has begun" in capsys.readouterr().out


def test_a_file_that_changed_is_not_gone_on_with(
    file: Path, settings: FrontDoorSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(rows: Sequence[Row]) -> None:
        if rows[0][1] != b"i0":
            raise ImportStoppedError("no more")

    use(monkeypatch, FakeSink(before_write=refuse))
    with pytest.raises(ImportStoppedError):
        run_import(options(file), settings)
    with file.open("a") as more:
        more.write("ann,tea,1\n")
    with pytest.raises(CannotStartError, match="has changed since"):
        run_import(options(file, resume=True), settings)


@pytest.mark.parametrize("on_bad", ["refuse", "skip"])
def test_a_row_that_only_the_target_refuses(
    file: Path,
    settings: FrontDoorSettings,
    monkeypatch: pytest.MonkeyPatch,
    on_bad: Literal["refuse", "skip"],
) -> None:
    def refuse(rows: Sequence[Row]) -> None:
        for position, row in enumerate(rows):
            if row[1] == b"i7":
                raise RowRefusedError("i7 is not welcome", position)

    sink = use(monkeypatch, FakeSink(before_write=refuse))
    if on_bad == "skip":
        assert run_import(options(file, on_bad="skip"), settings) == 0
        assert len(sink.rows) == 180
    else:
        with pytest.raises(ImportStoppedError, match=r"refuses line \d+ of .*i7 is not welcome"):
            run_import(options(file), settings)


def test_ctrl_c_says_how_to_go_on(
    file: Path,
    settings: FrontDoorSettings,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = 0

    def stop(rows: Sequence[Row]) -> None:
        nonlocal given
        given += len(rows)
        if given > 100:
            raise KeyboardInterrupt

    use(monkeypatch, FakeSink(before_write=stop))
    # What leads to the same target, and lets in there; the key itself is not shown.
    told = replace(options(file), url="http://h", key="fk_secret", key_file=Path("my key"))
    settings = replace(settings, inherited={"FOLDIN_CONFIG": "/f.toml"})
    assert run_import(told, settings) == 130
    said = capsys.readouterr().out
    assert f"go on with: foldin import {file} --url http://h --key-file 'my key' --config /f.toml" in said
    assert "secret" not in said


def test_positions_that_cannot_be_kept_cost_nothing(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "blocked").write_text("a file where a folder would be")
    sink = use(monkeypatch, FakeSink())
    settings = FrontDoorSettings.from_environment({"XDG_STATE_HOME": str(tmp_path / "blocked")})
    assert run_import(options(file), settings) == 0
    assert len(sink.rows) == 200


def test_the_state_folder_follows_the_environment(tmp_path: Path) -> None:
    assert FrontDoorSettings.from_environment({"HOME": "/h"}).state_dir == Path("/h/.local/state/foldin")
    assert FrontDoorSettings.from_environment({}).state_dir.name == "foldin"
    assert FrontDoorSettings.from_environment({"FOLDIN_REDIS_URL": ""}).redis_url is None


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


async def test_a_target_that_is_not_there_is_refused(tmp_path: Path, settings: FrontDoorSettings) -> None:
    asked = ImportOptions(tmp_path / "f", None, tmp_path, "auto", None, "refuse", resume=False)
    with pytest.raises(CannotStartError, match=r"no stack runs on .*foldin up --data"):
        await open_sink(asked, settings)
    asked = ImportOptions(tmp_path / "f", "http://127.0.0.1:9", None, "auto", None, "refuse", resume=False)
    with pytest.raises(CannotStartError, match=r"no API answers at http://127\.0\.0\.1:9"):
        await open_sink(asked, settings)


def test_what_a_retired_field_keeps_out_takes_a_call_and_not_one_a_row(
    file: Path, settings: FrontDoorSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file does not know what is retired: one refusal tells it of all rows that give the same."""
    text = "".join(
        f"u{n % 20},i{n // 20},3,{n if n % 4 else ''},{'old' if n % 3 else 'd1'}\n" for n in range(200)
    )
    file.write_text("user,item,rating,context.speed,context.device\n" + text)
    calls = 0

    def refuse(rows: Sequence[Row]) -> None:
        nonlocal calls
        calls += 1
        for position, row in enumerate(rows):
            for field, value in (row[5] or {}).items() if len(row) > 5 else ():
                if field == "speed" or value == "old":
                    raise RowRefusedError(f"{field} is retired", position, f"context.{field}")

    monkeypatch.setattr(FakeSink, "batch_rows", 100)
    monkeypatch.setattr(reading, "CHUNK_BYTES", 1_000_000)
    sink = use(monkeypatch, FakeSink(before_write=refuse))
    assert run_import(options(file, on_bad="skip"), settings) == 0
    # Of those without a speed, those of the other device.
    assert len(sink.rows) == len([n for n in range(0, 200, 4) if n % 3 == 0])
    # Two lanes of some 100 rows: each field is refused once in a call.
    assert calls <= 4 * 3
