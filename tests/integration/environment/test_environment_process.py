"""`python -m environment` as a process: says where it is, leaves with 0 on a signal and 2 on a mistake."""

import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.support.waiting import PATIENCE_S


@contextmanager
def environment(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A running environment and its address; killed at the end if it is still there."""
    command = [sys.executable, "-m", "environment", "--port", "0", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("environment on http://127.0.0.1:"), line
        yield process, line.split()[-1]
    finally:
        process.kill()
        process.communicate(timeout=PATIENCE_S)


def done(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A program, run to its end."""
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_code_0_though_clients_are_connected(number: signal.Signals) -> None:
    with environment() as (process, address):
        with urllib.request.urlopen(f"{address}/") as response:
            assert response.read() == b"Hello World!"
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as client:
            client.sendall(b"GET /reset?user_id=a HT")
            process.send_signal(number)
            _, errors = process.communicate(timeout=PATIENCE_S)
        assert (process.returncode, errors) == (0, "")


def test_a_port_in_use_is_one_line_and_code_2() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        refused = done("environment", "--port", port)
    assert refused.returncode == 2
    assert port in refused.stderr
    assert refused.stderr.count("\n") == 1


@pytest.mark.slow
def test_a_play_prints_plain_lines_where_there_is_no_terminal() -> None:
    with environment("--users", "20", "--items", "30", "--known", "100") as (_, address):
        flags = ("--players", "constant", "als", "--steps", "40", "--report-every", "20")
        played = done("evaluation.course.play", "--environment", address, *flags)
    assert played.returncode == 0, played.stderr
    assert "step 20 of 40" in played.stdout
    assert "step 40 of 40" in played.stdout
    assert "\x1b" not in played.stdout
    # The environment is gone.
    without = done("evaluation.course.play", "--environment", address)
    assert without.returncode == 1
    assert address in without.stderr
    assert "Traceback" not in without.stderr
    wrong = done("evaluation.course.play", "--known", "many")
    assert (wrong.returncode, "--known" in wrong.stderr) == (2, True)
