"""The command line: what it takes and refuses, how it ends, and that `--json` prints JSON alone."""

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from foldin.__main__ import main
from foldin.commands.reference import commands_reference
from foldin.commands.table import loaded
from foldin.errors import StoppedError
from foldin.reference import PROCESSES
from processes.errors import CannotStartError, StackFailedError
from processes.settings import declarations
from tests.support.stacks import EVERY_COMMAND

ROOT = Path(__file__).parents[3]


def python(code: str, *arguments: str, **more: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, stderr=subprocess.PIPE, text=True, cwd=ROOT, check=False, **more)


def test_every_command_names_a_function_its_options_and_what_it_prints() -> None:
    """And docs/cli.md is what they declare: `python -m foldin.commands.reference > docs/cli.md`."""
    for command in EVERY_COMMAND.values():
        assert callable(loaded(command.run)), command.name
        assert command.prints, command.name
        options = loaded(command.options) if command.options else None
        if options and any(True for _ in declarations(options)):
            assert options in {cls for _, cls, _ in PROCESSES}, command.name
    assert commands_reference() == (ROOT / "docs/cli.md").read_text("utf-8")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        *(("up --port 0", "--port must"), ("up --play --no-play", "--play and --no-play")),
        ("up --port 9000 --environment-port 9000", "cannot both have port 9000"),
        *(("import", "FILE needs"), ("import f --columns user=a", "--columns"), ("backup", "DIR needs")),
        *(("import f --url http://x --data d", "--url and --data"), ("keys add shop", "--role")),
        ("import nowhere.csv --items --undelete --users", "--items and --users"),
        *(("evaluate --engines auto bias", "FILE"), ("restore --to yesterday", "--to must be a time")),
        *(("bench nothing", "choose one of"), ("size --users 1e3 --items 1 --ratings 1", "--users must")),
        *(("version --config nowhere.toml", "nowhere.toml"), ("nosuch", "No such command 'nosuch'.")),
        ("doctor --url ftp://me:word@x", "not 'x'"),
        # What benchmarks and the torture refuse, a process of their own says.
        *((f"{name} --nosuch", "--nosuch") for name in EVERY_COMMAND if name not in {"bench", "torture"}),
    ],
)
def test_a_wrong_command_line_is_one_document_and_code_2(
    line: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    # Wherever it is asked for: behind all, or before the name.
    for words in ([*line.split(), "--json"], ["--json", *line.split()]):
        try:
            code = main(words)
        except SystemExit as ended:
            code = int(ended.code or 0)
        out, error = capfd.readouterr()
        told = json.loads(out)
        assert (code, told["exit_code"]) == (2, 2)
        assert said in told["error"]
        assert "\n" not in told["error"]
        assert told["error"] in error
        assert "Traceback" not in error


@pytest.mark.slow
def test_bash_completes_commands_flags_and_values() -> None:
    """By the script that `foldin --show-completion bash` prints, as bash calls it."""
    foldin = shlex.quote(str(Path(sys.executable).with_name("foldin")))
    program = f"""
eval "$({foldin} --show-completion bash)"
for line in "foldin ex" "foldin keys " "foldin verify --" "foldin export ratings --format "; do
  IFS=' ' read -ra COMP_WORDS <<<"$line"
  COMP_CWORD=${{#COMP_WORDS[@]}} && [[ $line == *' ' ]] || COMP_CWORD=$((COMP_CWORD - 1))
  _foldin_completion {foldin}
  echo "${{COMPREPLY[*]}}"
done
"""
    done = subprocess.run(["bash", "-ec", program], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stderr == ""
    names, keys, flags, values = (set(line.split()) for line in done.stdout.splitlines())
    assert names == {"export"}
    assert keys == {name.split()[1] for name in EVERY_COMMAND if name.startswith("keys ")}
    assert flags == {"--data", "--config", "--json", "--help"}
    assert values == {"ndjson", "csv", "parquet"}


@pytest.mark.parametrize(
    ("error", "code"),
    [
        *((CannotStartError("do this"), 2), (StackFailedError("do that"), 1)),
        *((StoppedError("go on"), 1), (ZeroDivisionError("by chance"), 1)),
    ],
)
def test_each_failure_is_one_line_and_its_code(
    error: Exception, code: int, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> int:
        raise error

    monkeypatch.setattr("foldin.commands.bench.bench", fail)
    assert main(["bench", "--json"]) == code
    said = capfd.readouterr()
    told = json.loads(said.out)["error"]
    ours = isinstance(error, ZeroDivisionError)
    assert told == ("a mistake of Foldin's: ZeroDivisionError: by chance" if ours else str(error))
    assert ("Traceback" in said.err) == ours
    # What says itself why it failed.
    monkeypatch.setattr("foldin.commands.bench.bench", lambda *_, **__: code)
    assert main(["bench", "--json"]) == code
    assert {"error", "exit_code"} < json.loads(capfd.readouterr().out).keys()


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
    done = python(code, stdout=subprocess.PIPE)
    document, after = done.stdout.splitlines()
    assert json.loads(document) == {"name": "\udcff", "nan": None, "inside": [[None, 1.5]]}
    assert after == "afterwards"
    assert sorted(done.stderr.split()) == ["a", "by", "child", "said", "written"]


def test_help_that_cannot_be_written_is_one_line() -> None:
    with Path("/dev/full").open("w") as full:
        done = python("import sys; from foldin.__main__ import main; sys.exit(main(['--help']))", stdout=full)
    assert (done.returncode, done.stderr) == (1, "foldin: stopped: No space left on device\n")


def test_the_supervisor_and_help_load_no_heavy_library() -> None:
    """What `foldin up` keeps loaded for as long as it runs, and what each command waits for."""
    code = "import sys, foldin.up; from foldin.__main__ import main; main(['--version'])\nprint(*sys.modules)"
    loaded_there = set(python(code, stdout=subprocess.PIPE).stdout.split())
    heavy = "numpy pyarrow scipy redis aiohttp rich msgspec uvloop typer pydantic"
    assert "foldin.up" in loaded_there
    assert not loaded_there & set(heavy.split())
