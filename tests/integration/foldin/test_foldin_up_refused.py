"""What keeps `foldin up` from starting is one line and code 2, and nothing is left running."""

import re
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from foldin.__main__ import main
from processes.probes import unused_port
from tests.support.stacks import processes

Refused = Callable[..., str]


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Refused:
    monkeypatch.chdir(tmp_path)

    def start(*flags: object, data: Path = tmp_path / "data", **settings: str) -> str:
        ports = ("--port", unused_port(), "--environment-port", unused_port())
        with monkeypatch.context() as patch:
            for name, value in settings.items():
                patch.setenv(name, value)
            code = main(["up", "--data", str(data), "--no-play", *map(str, (*ports, *flags))])
        said = capfd.readouterr().err
        assert code == 2, said
        assert re.fullmatch(r"foldin: [^\n]+\n", said)
        assert processes(data) == []
        return said

    return start


def test_a_port_in_use(refused: Refused) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen(1)
        port = taken.getsockname()[1]
        assert f"port {port} on 127.0.0.1 is in use" in refused("--port", port)
        assert "--environment-port" in refused("--environment-port", port)
    assert "cannot both have port" in refused("--port", port, "--environment-port", port)


def test_a_folder_that_cannot_be_written_or_is_of_another_kind(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "cannot be written" in refused(data=tmp_path / "file" / "data")
    (tmp_path / "data/store").mkdir(parents=True)
    (tmp_path / "data/store/cluster.json").write_text("{}")
    assert "holds a cluster of an earlier version, not one server: start an empty one" in refused()


@pytest.mark.slow
def test_a_store_that_is_not_there(refused: Refused) -> None:
    assert "does not answer" in refused(FOLDIN_REDIS_URL=f"redis://127.0.0.1:{unused_port()}")
