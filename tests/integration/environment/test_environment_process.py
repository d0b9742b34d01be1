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
