"""Every command on a running stack: with `--json` standard output has documents alone, and what lasts shows a
bar on a terminal, none with `--json` and none in a pipe. Guards docs/cli.md.
"""

import json
import os
import pty
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from subprocess import PIPE, Popen
from tempfile import TemporaryFile

import pytest

from processes.blocking import plain_environment, python_command
from processes.probes import unused_port
from tests.support.stacks import EVERY_COMMAND

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

# What hides the cursor, which a bar does first.
BAR = b"\x1b[?25l"
# The arguments of commands, if other than `--data {data}`; {new} is another file or folder each time.
LINES = {
    "up": "--no-play --workers 1 --data {data} --port {port} --environment-port {other_port}",
    "import": "{ratings} --data {data}",
    "recommend": "user-1 -n 3 --data {data}",
    "forget": "user-2 --yes --data {data}",
    "export": "ratings --data {data} --output {new}",
    "evaluate": "{ratings} --engines bias --out {new}",
    "backup": "{new} --data {data}",
    "restore": "{backup} --data {data}",
    "keys add": "shop --role rate --data {data}",
    "keys ensure": "second --role rate --file {new} --data {data}",
    "keys remove": "none --data {data}",
    "size": "--users 1k --items 1k --ratings 1k",
    "client-example": "python --data {data}",
    "torture": "judge {calls}",
    "bench": "fit --scale 0.0005 --rank 6 --seconds 0.2 --rounds 1 --force --no-pin --output {new}",
    "settings": "",
    "version": "",
}
LASTING = {"import", "export", "train", "evaluate", "backup", "restore", "verify", "bench"}
# By their code they say that something is not well.
MAY_FAIL = {"doctor", "keys remove"}

Run = Callable[..., tuple[int, bytes, bytes]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Runs a command on a stack with ratings, a key and a backup: exit code, output, standard error."""
    folder = tmp_path_factory.mktemp("commands")
    places = {name: folder / name for name in ("data", "ratings", "backup", "calls", "new", "key")}
    places["calls"].touch()
    rows = (f"user-{n % 30},item-{n % 7},{1 + n % 5}\n" for n in range(300))
    places["ratings"].write_text(f"user_id,item_id,rating\n{''.join(rows)}")
    ports = {"port": unused_port(), "other_port": unused_port()}
    environ = plain_environment(os.environ, {"TERM": "xterm", "FOLDIN_API_KEY_FILE": str(places["key"])})

    def ended(name: str, *flags: str, line: str = "", terminal: bool = False) -> tuple[int, bytes, bytes]:
        places["new"] = Path(f"{places['new']}+")
        words = (line or LINES.get(name, "--data {data}")).format(**places).split()
        command = python_command("foldin", *name.split(), *words, *flags)
        shown, end = pty.openpty() if terminal else os.pipe()
        said = b""
        with TemporaryFile() as out, Popen(command, stdout=out, stderr=end, env=environ) as process:
            os.close(end)
            # A terminal whose other end is closed fails.
            with suppress(OSError):
                while part := os.read(shown, 65_536):
                    said += part
            os.close(shown)
            code = process.wait()
            out.seek(0)
            return code, out.read(), said

    up = python_command("foldin", "up", "--json", *LINES["up"].format(**places, **ports).split())
    with (
        (folder / "log").open("wb") as log,
        Popen(up, stdout=PIPE, stderr=log, env=environ) as stack,
    ):
        try:
            assert stack.stdout is not None
            assert json.loads(stack.stdout.readline())["event"] == "ready"
            first = "first --role operate --file {key} --data {data}"
            for name, line in (("keys ensure", first), ("import", ""), ("backup", "{backup} --data {data}")):
                assert ended(name, line=line)[0] == 0
            yield ended
            stack.send_signal(signal.SIGINT)
            assert json.loads(stack.stdout.read())["event"] == "stopped"
            assert stack.wait() == 0
        finally:
            stack.kill()


# What `up` prints is looked at where the others have their stack from.
@pytest.mark.parametrize("name", sorted(EVERY_COMMAND.keys() - {"up"}))
def test_a_command_prints_documents_alone_and_a_bar_where_a_person_looks(name: str, run: Run) -> None:
    code, out, said = run(name, "--json", terminal=True)
    assert code == 0 or name in MAY_FAIL, said
    told = [json.loads(line) for line in out.splitlines()]
    assert told
    assert ("error" in told[-1]) == (code == 2)
    assert BAR not in said
    for terminal in (True, False) if name in LASTING else ():
        code, out, said = run(name, terminal=terminal)
        assert (code, BAR in said, BAR in out) == (0, terminal, False), said
