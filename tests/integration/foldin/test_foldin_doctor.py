"""`foldin doctor`: what it finds is so, what it advises helps, and it changes nothing."""

import asyncio
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from featurestore.settings import StoreSettings
from foldin.__main__ import main
from foldin.commands.doctor import machine, store
from foldin.commands.doctor.findings import worst
from foldin.preflight import locked
from processes.probes import unused_port
from tests.support.servers import KIND, StoreServer, running_server, store_environment
from tests.support.serving import QuietHandler, answering, serving


class Doctor:
    def __init__(self, folder: Path, patch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
        self._patch, self._capfd = patch, capfd
        for name in [name for name in os.environ if name.startswith("FOLDIN_")]:
            patch.delenv(name)
        ports = {"FOLDIN_PORT": str(unused_port()), "FOLDIN_ENVIRONMENT_PORT": str(unused_port())}
        self.has(**ports)
        patch.chdir(folder)

    def has(self, **variables: str) -> None:
        for name, value in variables.items():
            self._patch.setenv(name, value)

    def __call__(self, *arguments: object) -> tuple[int, dict[str, dict[str, str]], str]:
        self._capfd.readouterr()
        code = main(["doctor", "--json", "--timeout-s", "60", *map(str, arguments)])
        out, said = self._capfd.readouterr()
        told: Any = json.loads(out)
        assert told["worst"] == ("fail" if code else told["worst"])
        return code, {each["name"]: each for each in told["checks"]}, said


@pytest.fixture
def doctor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Doctor:
    folder = tmp_path / "here"
    folder.mkdir()
    return Doctor(folder, monkeypatch, capfd)


@pytest.fixture
def bare(tmp_path: Path) -> Iterator[StoreServer]:
    with running_server(KIND, tmp_path, "--appendonly", "no", "--maxmemory", "64mb") as server:
        yield server


def test_before_anything_runs_nothing_is_wrong(doctor: Doctor, tmp_path: Path) -> None:
    code, found, said = doctor()
    assert code == 0, found
    wrong = {name: each["status"] for name, each in found.items() if each["status"] != "ok"}
    assert wrong == {"store": "warn", "service": "warn"}
    assert "foldin up" in found["store"]["advice"]
    assert "-> start everything with `foldin up`" in said
    assert not list((tmp_path / "here").iterdir()), "nothing is made"
    # What does not answer is named, without its password, as are settings that cannot be read.
    doctor.has(FOLDIN_REDIS_URL=f"redis://:word@127.0.0.1:{unused_port()}")
    code, found, said = doctor("--url", f"http://me:word@127.0.0.1:{unused_port()}")
    assert (code, found["store"]["status"], found["service"]["status"]) == (1, "fail", "fail")
    assert "word" not in said + json.dumps(found)
    doctor.has(FOLDIN_REDIS_URL="redis://host:port", FOLDIN_PARTITIONS="many")
    code, found, _ = doctor()
    assert (code, found["settings"]["status"]) == (1, "fail")
    assert "FOLDIN_PARTITIONS must" in found["settings"]["found"]
    Path("foldin.toml").write_text("[service]\nworkers = true\n")
    told = "foldin.toml: [service] workers must be a whole number from 1 to 256, not 'true'"
    assert doctor()[1]["settings"]["found"] == told


def test_a_store_that_loses_ratings_is_a_failure(bare: StoreServer, doctor: Doctor) -> None:
    doctor.has(FOLDIN_REDIS_URL=bare.url)
    code, found, _ = doctor()
    assert (code, found["persistence"]["status"]) == (1, "fail")
    assert "appendonly" in found["persistence"]["advice"]
    assert {found[name]["status"] for name in ("store", "clock of the store", "memory")} == {"ok"}
    assert "of 64 MB" in found["memory"]["found"]
    with Redis.from_url(bare.url) as client:
        assert client.keys() == [], "no namespace is created"
        assert client.function_list() == [], "no function is loaded"
        client.config_set("maxmemory-policy", "allkeys-lru")
        assert doctor()[1]["store"]["status"] == "fail"
        client.config_set("maxmemory-policy", "noeviction")
        client.config_set("maxmemory", str(client.info("memory")["used_memory"]))
        assert "ratings are refused" in doctor()[1]["memory"]["found"]


async def test_namespace_to_archive(store_settings: StoreSettings, doctor: Doctor, tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    segments = archive / store_settings.namespace / "epoch-000001"
    segments.mkdir(parents=True)
    (segments / "x.parquet").touch()
    (segments.parent / "identity.json").write_text(json.dumps({"identity": "0" * 32, "format": 1}))
    doctor.has(**store_environment(store_settings))
    async with serving(store_settings) as (client, _):

        async def look(**more: str) -> tuple[int, dict[str, dict[str, str]]]:
            doctor.has(**more)
            return (await asyncio.to_thread(doctor, "--url", client.url))[:2]

        code, found = await look(FOLDIN_ARCHIVE_DIR=str(tmp_path / "none"))
        # No trainer runs here.
        assert code == 1
        failed = {name for name, each in found.items() if each["status"] == "fail"}
        assert failed == {"trainer", "service"}
        assert "is not ready (503: " in found["service"]["found"]
        assert found["namespace"]["status"] == found["archive"]["status"] == "ok"
        _, found = await look(FOLDIN_ARCHIVE_DIR=str(archive))
        assert found["archive"]["status"] == "fail"
        assert "was made for another store (00000000" in found["archive"]["found"]
        assert "foldin restore" in found["archive"]["advice"]
        _, found = await look(FOLDIN_PARTITIONS="3")
        assert f"set FOLDIN_PARTITIONS={store_settings.partitions}" in found["namespace"]["advice"]


@contextmanager
def asked() -> Iterator[tuple[str, list[str | None]]]:
    keys: list[str | None] = []

    class Handler(QuietHandler):
        def do_GET(self) -> None:  # noqa: N802 - name of the base class
            keys.append(self.headers.get("Authorization"))
            self.send_error(404)

    with answering(Handler) as url:
        yield url, keys


def a_stack(data: Path, url: str) -> None:
    data.mkdir()
    (data / "operator.key").write_text("fk_own\n")
    (data / "operator.key").chmod(0o600)
    content = {"pid": os.getpid(), "url": url, "environment_url": url, "store": {}}
    (data / "stack.json").write_text(json.dumps(content))


def test_the_key_of_a_stack_is_shown_to_that_stack_alone(doctor: Doctor) -> None:
    data = Path("data")
    with asked() as (own, own_keys), asked() as (other, other_keys):
        a_stack(data, own)
        doctor.has(FOLDIN_PORT=other.rpartition(":")[2])
        with locked(data):
            for arguments in ((), ("--url", own), ("--data", data), ("--url", f"{own}/")):
                doctor(*arguments)
                assert "Bearer fk_own" in own_keys, arguments
                own_keys.clear()
            doctor("--url", other)
            doctor("--url", other, "--data", data)
        # What listens here when the stack is gone is another's.
        doctor()
        doctor("--data", data)
        assert set(other_keys) == {None}


def info(**more: object) -> dict[str, Any]:
    good = {"redis_version": "8.0.0", "aof_enabled": 1, "maxmemory_policy": "noeviction"}
    return {**good, "aof_last_write_status": "ok", "aof_last_bgrewrite_status": "ok", **more}


FINDINGS = [
    (store.version(info(redis_version="6.2.1"), "x"), "fail", "too old"),
    (store.version(info(server_name="valkey", valkey_version="7.2.8"), "x"), "fail", "too old"),
    (store.version(info(cluster_enabled=1), "x"), "fail", "cluster"),
    (store.persistence(info(), "always", "store"), "ok", "always"),
    (store.persistence(info(), "everysec", "store"), "warn", "may cost"),
    (store.persistence(info(aof_last_write_status="err"), "always", "store"), "fail", "last write"),
    (store.memory_room(info(used_memory=90, maxmemory=100), None), "warn", "90%"),
    (store.memory_room(info(used_memory=99, maxmemory=100), None), "fail", "refused"),
    (store.memory_room(info(used_memory=99, mem_not_counted_for_evict=50, maxmemory=100), None), "ok", "49%"),
    (store.clock("clock", 3.0, 0.5), "warn", "2.5 s ahead of"),
    (store.clock("clock", -300.0, 0.5), "fail", "299.5 s behind"),
]


def test_findings_in_a_store() -> None:
    for found, status, words in FINDINGS:
        assert found.status == status, found
        assert words in found.found
        assert bool(found.advice) == (status != "ok")


def test_findings_on_a_machine(tmp_path: Path) -> None:
    assert machine.disk_room(tmp_path / "not" / "there").status in {"ok", "warn"}
    file = tmp_path / "file"
    file.touch()
    assert machine.disk_room(file).status == "fail"
    assert machine.disk_room(file / "inside").status == "fail"
    assert [machine.privacy(each).status for each in (Path("/"), tmp_path / "not")] == ["warn", "ok"]
    port = unused_port()
    ours = {"service": ("127.0.0.1", port, "/livez")}
    assert [each.status for each in machine.ports(ours, runs=False)] == ["ok"]
    assert [each.status for each in machine.ports(ours, runs=True)] == ["fail"]
    with socket.create_server(("127.0.0.1", port)):  # one that never answers
        (taken,) = machine.ports(ours, runs=False)
        assert (taken.status, "in use" in taken.found) == ("warn", True)
    assert worst([]) == "ok"
