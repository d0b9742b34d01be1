"""Every command on a running stack: with `--json` standard output has documents alone, and what lasts shows a
bar on a terminal, none with `--json` and none in a pipe. Guards docs/cli.md.
"""

import json
import os
import pty
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from threading import Thread
from typing import Any

import pytest

from processes.blocking import plain_environment, python_command
from processes.probes import unused_port
from tests.support.servers import KIND, running_server
from tests.support.stacks import EVERY_COMMAND

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

# What hides the cursor, which a bar does first.
BAR = b"\x1b[?25l"
TINY = "--scale 0.0005 --rank 6 --seconds 0.2 --rounds 1 --force --no-pin --output {new}"
# By command: its arguments on the stack at {data}, twice what is {new}; which of these last; which may say by
# their code that something is not well.
LINES = {
    "up": "",
    "import": "{ratings} --data {data}",
    "export": "ratings --data {data} --output {new}",
    "evaluate": "{ratings} --engines bias --out {new}",
    "backup": "{new} --data {data}",
    "restore": "{backup} --data {data}",
    "undo": "--data {data}",
    "verify": "--data {data}",
    "migrate": "--data {data} --to {other} --dry-run",
    "doctor": "--data {data}",
    "keys add": "shop --role rate --data {data}",
    "keys ensure": "second --role rate --file {new} --data {data}",
    "keys list": "--data {data}",
    "keys remove": "none --data {data}",
    "size": "--users 1k --items 1k --ratings 1k",
    "client-example": "python --data {data}",
    "torture": "judge {calls}",  # of no calls
    "bench": f"fit {TINY}",
    "settings": "",
    "version": "",
}
LASTING = {"import", "export", "evaluate", "backup", "restore", "verify", "migrate", "bench"}
MAY_FAIL = {"doctor", "keys remove"}


@dataclass
class Ended:
    code: int
    out: bytes
    error: bytes


def run(*words: str, terminal: bool, **settings: str) -> Ended:
    """Run a command to its end, with standard error on a terminal or in a pipe."""
    environ = plain_environment(os.environ, {"TERM": "xterm", "COLUMNS": "200", **settings})
    shown, end = pty.openpty() if terminal else os.pipe()
    said = bytearray()

    def read() -> None:
        # Of a terminal that has no other end any more.
        with suppress(OSError):
            while part := os.read(shown, 65_536):
                said.extend(part)

    reader = Thread(target=read)
    reader.start()
    done = subprocess.Popen(
        python_command("foldin", *words),
        stdout=subprocess.PIPE,
        stderr=end,
        stdin=subprocess.DEVNULL,
        env=environ,
    )
    os.close(end)
    out, _ = done.communicate()
    reader.join()
    os.close(shown)
    return Ended(done.returncode, out, bytes(said))


def documents(out: bytes) -> list[Any]:
    return [json.loads(line) for line in out.splitlines()]


Run = Callable[..., Ended]


@pytest.fixture(scope="module")
def on_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Runs lines on a stack that has ratings, keys and a backup, which `foldin up --json` runs."""
    folder = tmp_path_factory.mktemp("commands")
    data, key, ratings = folder / "data", folder / "operator.key", folder / "ratings.csv"
    rows = [f"user-{n % 30},item-{n % 7},{1 + n % 5}" for n in range(300)]
    ratings.write_text("\n".join(["user_id,item_id,rating", *rows, ""]))
    (folder / "calls").touch()
    ports = ("--port", str(unused_port()), "--environment-port", str(unused_port()))
    command = python_command(
        "foldin", "up", "--json", "--no-play", "--workers", "1", "--data", str(data), *ports
    )
    store = folder / "other"
    store.mkdir()
    with (
        (folder / "up.log").open("wb") as log,
        running_server(KIND, store) as other,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, env=plain_environment(os.environ, {})
        ) as up,
    ):
        assert up.stdout is not None
        assert json.loads(up.stdout.readline())["event"] == "ready"
        places = {"data": data, "ratings": ratings, "other": other.url, "calls": folder / "calls"}
        number = 0

        def run_line(words: str, line: str, *flags: str, terminal: bool) -> Ended:
            nonlocal number
            number += 1
            found = line.format(**places, backup=folder / "backup", new=folder / f"new-{number}")
            arguments = (*words.split(), *found.split(), *flags)
            return run(*arguments, terminal=terminal, FOLDIN_API_KEY_FILE=str(key))

        try:
            for words, line in (
                ("keys ensure", f"first --role operate --file {key} --data {{data}}"),
                ("import", LINES["import"]),
                ("backup", "{backup} --data {data}"),
            ):
                done = run_line(words, line, terminal=False)
                assert done.code == 0, done
            yield run_line
            up.send_signal(signal.SIGINT)
            (stopped,) = documents(up.stdout.read())
            assert stopped["event"] == "stopped"
            assert up.wait() == 0
        finally:
            up.kill()


@pytest.mark.parametrize("name", EVERY_COMMAND)
def test_a_command_prints_documents_alone_and_a_bar_where_a_person_looks(name: str, on_stack: Run) -> None:
    if name == "up":
        # What the fixture does.
        return
    done = on_stack(name, LINES[name], "--json", terminal=True)
    assert done.code in ({0, 1, 2} if name in MAY_FAIL else {0}), done
    told = documents(done.out)
    assert told
    assert all(isinstance(each, dict) for each in told)
    assert ("error" in told[-1]) == (done.code == 2)
    assert BAR not in done.error
    if name in LASTING:
        for terminal in (True, False):
            done = on_stack(name, LINES[name], terminal=terminal)
            assert done.code == 0, done
            assert (BAR in done.error) == terminal
            assert BAR not in done.out
