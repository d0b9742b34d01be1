"""`python -m environment` as a process: says where it is, leaves with 0 on a signal and 2 on a mistake."""

import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

WAIT_S = 30


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
        process.communicate(timeout=WAIT_S)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_code_0(number: signal.Signals) -> None:
    with environment() as (process, address):
        with urllib.request.urlopen(f"{address}/", timeout=WAIT_S) as response:
            assert response.read() == b"Hello World!"
        process.send_signal(number)
        _, errors = process.communicate(timeout=WAIT_S)
        assert process.returncode == 0
        assert errors == ""


def test_a_signal_ends_it_though_clients_are_connected() -> None:
    with environment() as (process, address):
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=WAIT_S) as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert b"Hello World!" in client.recv(1_000)
            client.sendall(b"GET /reset?user_id=a HT")
            process.terminate()
            process.communicate(timeout=WAIT_S)
        assert process.returncode == 0


def test_a_port_in_use_is_one_line_and_code_2() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        command = [sys.executable, "-m", "environment", "--port", str(port)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S, check=False)
    assert done.returncode == 2
    assert str(port) in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("module", ["environment", "evaluation.course.play", "evaluation.course.protocol"])
def test_a_wrong_argument_is_code_2_without_a_traceback(module: str) -> None:
    command = [sys.executable, "-m", module, "--known", "many", "--seed", "x"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S, check=False)
    assert done.returncode == 2
    assert "--known" in done.stderr
    assert "--seed" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_play_prints_plain_lines_where_there_is_no_terminal() -> None:
    with environment("--users", "20", "--items", "30", "--known", "100") as (_, address):
        arguments = [
            "--environment",
            address,
            "--players",
            "constant",
            "als",
            "--steps",
            "40",
            "--report-every",
            "20",
        ]
        command = [sys.executable, "-m", "evaluation.course.play", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S, check=False)
    assert done.returncode == 0, done.stderr
    assert "step 20 of 40" in done.stdout
    assert "step 40 of 40" in done.stdout
    assert "\x1b" not in done.stdout


def test_a_play_without_an_environment_says_so_with_code_1() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
        command = [sys.executable, "-m", "evaluation.course.play", "--environment", address]
        done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S, check=False)
    assert done.returncode == 1
    assert address in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_play_with_code_0(number: signal.Signals) -> None:
    with environment() as (_, address):
        arguments = ["--environment", address, "--players", "constant", "--delay-ms", "100"]
        process = subprocess.Popen(
            [sys.executable, "-m", "evaluation.course.play", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            # What a shell starts in the background ignores Ctrl-C, and so does what that starts.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509  # no threads
        )
        try:
            assert process.stdout is not None
            while "ratings known" not in process.stdout.readline():
                assert process.poll() is None
            process.send_signal(number)
            _, errors = process.communicate(timeout=WAIT_S)
        finally:
            process.kill()
            process.communicate(timeout=WAIT_S)
        assert process.returncode == 0, errors
        assert "Traceback" not in errors
