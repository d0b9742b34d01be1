"""`--json`: standard output has JSON alone, whatever is said; completion in shells; what help loads."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from foldin.__main__ import main
from foldin.commands.output import json_output
from foldin.commands.table import COMMANDS, Command, loaded
from foldin.reference import PROCESSES
from processes.settings import declarations

ROOT = Path(__file__).parents[3]


def foldin(*arguments: object, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("FOLDIN_")}
    return subprocess.run(
        [sys.executable, "-m", "foldin", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=folder,
        env={**environ, "PYTHONPATH": str(ROOT), **variables},
        check=False,
    )


def every_command() -> list[tuple[str, Command]]:
    return [
        (f"{command.name} {inner.name}" if inner is not command else command.name, inner)
        for command in COMMANDS.values()
        for inner in command.commands or (command,)
    ]


@pytest.mark.parametrize(("name", "command"), every_command(), ids=lambda each: str(each)[:20])
def test_every_command_names_a_function_its_options_and_what_it_prints(name: str, command: Command) -> None:
    """What the table names is there, and its options are in the reference of settings."""
    assert callable(loaded(command.run)), name
    assert command.prints, name
    if command.options and any(True for _ in declarations(loaded(command.options))):
        assert loaded(command.options) in {cls for _, cls, _ in PROCESSES}


def test_a_document_is_one_line_of_json(tmp_path: Path) -> None:
    done = foldin("version", "--json", folder=tmp_path)
    assert json.loads(done.stdout).keys() == {"foldin", "python"}
    assert done.stdout.count("\n") == 1
    # What is said without it is said on the other side.
    assert done.stderr == foldin("version", folder=tmp_path).stdout


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("up", "--port", "0"), 2),
        (("import", "--json", "nowhere.csv"), 2),
        (("export", "ratings", "--data", "nowhere"), 2),
        (("evaluate", "nowhere.csv"), 2),
        (("backup", "there", "--data", "nowhere"), 2),
        (("restore", "--data", "nowhere"), 2),
        (("undo", "--data", "nowhere"), 2),
        (("verify", "--data", "nowhere"), 2),
        (("keys", "list", "--data", "nowhere"), 2),
        (("keys", "add", "shop"), 2),
        (("bench", "nothing"), 2),
        (("client-example", "perl"), 2),
        (("version", "--config", "nowhere.toml"), 2),
    ],
)
def test_a_failure_is_a_document_too(arguments: tuple[str, ...], code: int, tmp_path: Path) -> None:
    done = foldin(*arguments, *(() if "--json" in arguments else ("--json",)), folder=tmp_path)
    assert done.returncode == code, done
    told = json.loads(done.stdout)
    assert told["exit_code"] == code
    assert done.stderr.rstrip().endswith(f"foldin: {told['error']}")
    if arguments[0] not in {"up", "keys"}:  # two that start fast, one that does not, are enough
        return
    plain = foldin(*(each for each in arguments if each != "--json"), folder=tmp_path)
    assert (plain.returncode, plain.stderr) == (code, done.stderr)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("nosuch", "--json"), "No such command 'nosuch'."),
        (("keys", "--json"), "Missing command."),
        (("keys", "--json", "lend"), "No such command 'lend'."),
        (("--json",), "Missing command."),
    ],
)
def test_a_name_that_does_not_exist_is_a_document_too(
    arguments: tuple[str, ...], error: str, tmp_path: Path
) -> None:
    done = foldin(*arguments, folder=tmp_path)
    assert done.returncode == 2
    assert json.loads(done.stdout) == {"error": error, "exit_code": 2}
    assert error in done.stderr


def test_a_mistake_of_ours_is_a_document_with_its_traceback_beside(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> int:
        raise ZeroDivisionError("by chance")

    monkeypatch.setattr("foldin.commands.bench.bench", fail)
    assert main(["bench", "--json"]) == 1
    said = capfd.readouterr()
    assert json.loads(said.out)["error"] == "a mistake of Foldin's: ZeroDivisionError: by chance"
    assert "Traceback" in said.err


@pytest.mark.parametrize("arguments", [("version",), ("version", "--json"), ("settings",)])
def test_a_full_disk_is_one_line(arguments: tuple[str, ...]) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "foldin", *arguments],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            cwd=ROOT,
            env={**os.environ, "PYTHONUNBUFFERED": ""},
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "foldin: stopped: No space left on device"
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


def test_the_lists_of_benchmarks_and_settings(tmp_path: Path) -> None:
    listed = json.loads(foldin("bench", "--list", "--json", folder=tmp_path).stdout)
    assert {"name": "all", "about": listed["benchmarks"][1]["about"]} in listed["benchmarks"]
    settings = json.loads(foldin("settings", "--json", folder=tmp_path).stdout)["settings"]
    port = next(each for each in settings if each["flag"] == "--port" and each["process"] == "foldin up")
    assert (port["variable"], port["default"], port["file"]) == ("FOLDIN_PORT", "8080", "service.port")


def test_what_children_and_libraries_print_is_said_elsewhere() -> None:
    code = """
import os, subprocess, sys
from foldin.commands.output import json_output
with json_output() as emit:
    print("said")
    os.write(1, b"written\\n")
    subprocess.run([sys.executable, "-c", "print('by a child')"], check=True)
    emit({"name": "\\udcff", "nan": float("nan"), "inside": [(float("inf"), 1.5)]})
print("afterwards")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    document, after = done.stdout.splitlines()
    assert json.loads(document) == {"name": "\udcff", "nan": None, "inside": [[None, 1.5]]}
    assert after == "afterwards"
    assert sorted(done.stderr.split()) == ["a", "by", "child", "said", "written"]


def test_a_document_that_is_no_json_is_a_mistake_of_the_command() -> None:
    with pytest.raises(TypeError, match="set is not printed"), json_output() as emit:
        emit({1, 2})


@pytest.mark.parametrize(
    ("arguments", "code"),
    # The last is cut off while it prints.
    [(("version", "--json"), 0), (("version",), 0), (("settings",), 1)],
)
def test_a_reader_that_goes_away_is_no_mistake(arguments: tuple[str, ...], code: int) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "foldin", *arguments],
        stdout=writer,
        stderr=subprocess.PIPE,
        timeout=60,
        cwd=ROOT,
        env={**os.environ, "PYTHONUNBUFFERED": ""},
        check=False,
    )
    os.close(writer)
    assert done.returncode == code
    assert b"Traceback" not in done.stderr
    assert b"Exception ignored" not in done.stderr


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("foldin im", ["import"]),
        ("foldin client", ["client-example"]),
        ("foldin keys ", ["add", "ensure", "list", "remove"]),
        ("foldin export ", ["ratings", "items", "users"]),
        ("foldin export ratings --form", ["--format"]),
        ("foldin import f.csv --on-bad ", ["refuse", "skip"]),
        ("foldin keys add shop --role ", ["metrics", "read", "rate", "operate"]),
        ("foldin up --jso", ["--json"]),
    ],
)
def test_bash_completes_commands_flags_and_values(line: str, offered: list[str], tmp_path: Path) -> None:
    words = line.split(" ")
    done = foldin(
        folder=tmp_path,
        _FOLDIN_COMPLETE="complete_bash",
        COMP_WORDS=line,
        COMP_CWORD=str(len(words) - 1),
    )
    assert done.stdout.split() == offered


def test_every_option_of_a_file_or_folder_is_completed_with_their_names() -> None:
    commands = [each for command in COMMANDS.values() for each in (command.commands or [command])]
    declared = [
        setting for each in commands if each.options for _, setting in declarations(loaded(each.options))
    ]
    named = [setting for setting in declared if setting.metavar in {"PATH", "DIR", "FILE"}]
    assert len(named) > 20
    assert all(setting.is_path for setting in named)


def test_zsh_fish_and_bash_are_shown_their_scripts(tmp_path: Path) -> None:
    for shell in ("bash", "zsh", "fish"):
        done = foldin("--show-completion", shell, folder=tmp_path)
        assert "_FOLDIN_COMPLETE" in done.stdout, done
        assert shell != "zsh" or "#compdef foldin" in done.stdout


def loaded_by(*arguments: str) -> set[str]:
    code = f"""
import sys
from foldin.__main__ import main
try:
    main({list(arguments)!r})
except SystemExit:
    pass
print(*sys.modules, file=sys.stderr)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    return set(done.stderr.split())


HEAVY = {"numpy", "pyarrow", "aiohttp", "redis", "rich", "msgspec", "pydantic"}


def test_help_loads_nothing_heavy_and_a_command_no_typer() -> None:
    assert not loaded_by("--help") & HEAVY
    assert not loaded_by("up", "--help") & HEAVY
    assert not loaded_by("version") & {*HEAVY, "typer"}
    assert "typer" in loaded_by("--help")


def test_the_reference_of_commands_is_what_they_declare() -> None:
    """`python -m foldin.commands.reference > docs/cli.md` brings it up to date."""
    from foldin.commands.reference import commands_reference

    assert commands_reference() == (ROOT / "docs/cli.md").read_text("utf-8")


def test_flags_of_typer_are_those_that_are_read(capsys: pytest.CaptureFixture[str]) -> None:
    """Help names every flag that the loader takes, for each command."""
    from foldin.commands.app import show

    for name, command in every_command():
        if not command.options:
            continue
        with pytest.raises(SystemExit):
            show([*name.split(), "--help"], {})
        text = capsys.readouterr().out
        for flag in _flags(loaded(command.options)):
            assert flag in text, f"{name} {flag}"


def _flags(cls: type[Any]) -> list[str]:
    return [each.flag for _, each in declarations(cls) if each.flag and each.help != "==SUPPRESS=="]
