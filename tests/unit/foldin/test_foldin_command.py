"""The command line: what it takes, what it refuses, and what it says when it cannot go on."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from foldin import __main__ as command
from foldin.commands.bench import bench
from foldin.commands.table import COMMANDS
from foldin.errors import ImportStoppedError
from foldin.settings import StackOptions
from processes.errors import CannotStartError, StackFailedError


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        command.main(["--help"])
    text = capsys.readouterr().out
    for name in COMMANDS:
        assert f"\n  {name} " in text


def test_help_of_every_command_fits_in_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    # Of the benchmarks each is in one line, however long; the torture is a process of its own.
    for name in COMMANDS.keys() - {"bench", "torture"}:
        with pytest.raises(SystemExit, match="0"):
            command.main([name, "--help"])
        assert not [line for line in capsys.readouterr().out.splitlines() if len(line) > 80]


def test_flags_win_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[StackOptions] = []

    def keep(options: StackOptions, _: object) -> int:
        read.append(options)
        return 0

    monkeypatch.setattr("foldin.up.up", keep)
    monkeypatch.setenv("FOLDIN_PORT", "9000")
    monkeypatch.setenv("FOLDIN_WORKERS", "3")
    for flags in (["--port", "9001"], ["--no-play"], ["--play"]):
        assert command.main(["up", *flags]) == 0
    args = read[0]
    assert (args.port, args.workers, args.environment_port, args.host) == (9001, 3, 8081, "127.0.0.1")
    assert [(each.play, each.no_play) for each in read] == [(False, False), (False, True), (True, False)]


@pytest.mark.parametrize(
    "arguments",
    [
        ["up", "--port", "0"],
        ["up", "--port", "65536"],
        ["up", "--port", "8080.0"],
        ["up", "--workers", "-1"],
        ["up", "--play", "--no-play"],
        ["import"],
        ["import", "f", "--columns", "user=a"],
        ["import", "f", "--columns", "user=a,item=b,rating=c,rating=d"],
        ["import", "f", "--columns", "user=a,item=b,rating=c,name=d"],
        ["import", "f", "--format", "xml"],
        ["import", "f", "--url", "http://x", "--data", "d"],
    ],
)
def test_a_wrong_command_line_ends_with_code_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(arguments) == 2
    assert re.fullmatch(r"foldin: (--|FILE )[^\n]+\n", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere.csv", "--ranking"], "nowhere.csv"),
        (["--ranking", "nowhere.csv"], "nowhere.csv"),
        (["--seed", "3", "nowhere.csv"], "nowhere.csv"),
        (["--share", "0.1", "--out", "there", "nowhere.csv"], "nowhere.csv"),
        (["--engines", "auto", "bias"], "FILE"),
        (["--steps", "0"], "--steps must"),
        (["--seed", "x", "--players", "bias"], "--seed must"),
    ],
)
def test_evaluate_finds_its_file_wherever_it_stands(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["evaluate", *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "unknown argument" not in error


@pytest.mark.parametrize("arguments", [[], ["fly"]])
def test_a_command_that_does_not_exist_ends_with_code_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        command.main(arguments)
    assert "Error:" in capsys.readouterr().err


def test_wrong_flags_and_wrong_variables_are_refused_together(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FOLDIN_PORT", "http")
    monkeypatch.setenv("FOLDIN_ENVIRONMENT_PORT", "0")
    assert command.main(["up", "--workers", "many", "--fly"]) == 2
    error = capsys.readouterr().err
    for wrong in ("FOLDIN_PORT must", "FOLDIN_ENVIRONMENT_PORT must", "--workers must", "argument --fly"):
        assert wrong in error


def test_both_servers_on_one_port_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["up", "--port", "9000", "--environment-port", "9000"]) == 2
    assert "cannot both have port 9000" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code"),
    [(CannotStartError("do this"), 2), (StackFailedError("do that"), 1), (ImportStoppedError("go on"), 1)],
)
def test_each_failure_is_one_line_and_its_code(
    error: Exception, code: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> int:
        raise error

    monkeypatch.setattr("foldin.commands.bench.bench", fail)
    assert command.main(["bench"]) == code
    assert capsys.readouterr().err == f"foldin: {error}\n"


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["version"]) == 0
    assert capsys.readouterr().out.startswith("foldin ")


def test_bench_lists_runs_and_refuses(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "benchmarks"
    folder.mkdir()
    (folder / "one.py").write_text('"""Measures one thing.\n\nMore."""\ndef main(): pass\n')
    (folder / "__init__.py").touch()
    (folder / "helper.py").write_text('"""No benchmark."""\n')
    (folder / "__main__.py").write_text("import sys\ndef main(): pass\nprint(sys.argv[1:])\nsys.exit(3)\n")
    assert bench(["--list"], tmp_path) == 0
    listed = capfd.readouterr().out
    assert re.search(r"\n  one +Measures one thing\.\n", listed)
    assert "helper" not in listed
    assert "__main__" not in listed
    assert bench(["one", "--quick"], tmp_path) == 3
    assert capfd.readouterr().out == "['one', '--quick']\n"
    assert bench([], tmp_path) == 3
    with pytest.raises(CannotStartError, match="choose one of one"):
        bench(["two"], tmp_path)
    with pytest.raises(CannotStartError, match="checkout"):
        bench(["one"], tmp_path / "nowhere")


def test_the_torture_needs_a_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("foldin.commands.torture.ROOT", tmp_path)
    assert command.main(["torture", "--minutes", "1"]) == 2
    assert "comes with a checkout" in capsys.readouterr().err


def test_the_supervisor_loads_no_heavy_library() -> None:
    """What `foldin up` keeps loaded for as long as it runs."""
    heavy = ["numpy", "pyarrow", "scipy", "redis", "aiohttp", "rich", "msgspec", "uvloop", "multiprocessing"]
    code = f"import sys, foldin.__main__, foldin.up; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "[]\n"
