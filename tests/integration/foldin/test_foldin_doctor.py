"""`foldin doctor`: what it finds is so, what it advises helps, and it changes nothing."""

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from redis import Redis

from featurestore.settings import StoreSettings
from foldin.commands.doctor import machine, store
from foldin.commands.doctor.findings import Finding, worst
from foldin.preflight import locked
from processes.blocking import plain_environment
from processes.probes import http_ok, unused_port
from tests.support.servers import KIND, StoreServer
from tests.support.serving import serving
from tests.support.stacks import foldin, stack
from tests.support.waiting import wait_until

ROOT = Path(__file__).parents[3]


class Doctor:
    """The command, in a folder where no stack runs."""

    def __init__(self, folder: Path, **variables: str) -> None:
        self._folder = folder
        ports = {"FOLDIN_PORT": str(unused_port()), "FOLDIN_ENVIRONMENT_PORT": str(unused_port())}
        given = {**ports, "PYTHONPATH": str(ROOT), **variables}
        self._environ = plain_environment(os.environ, given)

    def __call__(self, *arguments: object) -> tuple[int, dict[str, dict[str, str]], str]:
        """Return its exit code, what it found by name, and what it said."""
        done = subprocess.run(
            [sys.executable, "-m", "foldin", "doctor", "--json", *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=60,
            cwd=self._folder,
            env=self._environ,
            check=False,
        )
        told: Any = json.loads(done.stdout)
        assert told["worst"] == ("fail" if done.returncode else told["worst"])
        return done.returncode, {each["name"]: each for each in told["checks"]}, done.stderr


@pytest.fixture
def bare(tmp_path: Path) -> Iterator[StoreServer]:
    """A Redis without a file, with little memory."""
    server = StoreServer(KIND, tmp_path, "--appendonly", "no", "--maxmemory", "64mb")
    server.start()
    try:
        yield server
    finally:
        server.stop()


def test_before_anything_runs_nothing_is_wrong(tmp_path: Path) -> None:
    code, found, said = Doctor(tmp_path)()
    assert code == 0, found
    assert {name: each["status"] for name, each in found.items() if each["status"] != "ok"} == {
        "store": "warn",
        "service": "warn",
    }
    assert "foldin up" in found["store"]["advice"]
    assert "-> start everything with `foldin up`" in said
    assert not list(tmp_path.iterdir()), "nothing is made"


def test_a_store_that_loses_ratings_is_a_failure(bare: StoreServer, tmp_path: Path) -> None:
    code, found, _ = Doctor(tmp_path / ".", FOLDIN_REDIS_URL=bare.url)()
    assert code == 1
    assert found["persistence"]["status"] == "fail"
    assert "appendonly" in found["persistence"]["advice"]
    assert (
        found["store"]["status"] == found["clock of the store"]["status"] == found["memory"]["status"] == "ok"
    )
    assert "of 64 MB" in found["memory"]["found"]
    with Redis.from_url(bare.url) as client:
        assert client.keys() == [], "no namespace is created"
        assert client.function_list() == [], "no function is loaded"
        client.config_set("maxmemory-policy", "allkeys-lru")
        assert Doctor(tmp_path, FOLDIN_REDIS_URL=bare.url)()[1]["store"]["status"] == "fail"
        client.config_set("maxmemory-policy", "noeviction")
        client.hset("foldin:live", "migration", "closing 0a")
        moving = Doctor(tmp_path, FOLDIN_REDIS_URL=bare.url)()[1]["migration"]
        assert (moving["status"], "run it again" in moving["advice"]) == ("fail", True)
        client.delete("foldin:live")
        client.config_set("maxmemory", str(client.info("memory")["used_memory"]))
        assert "ratings are refused" in Doctor(tmp_path, FOLDIN_REDIS_URL=bare.url)()[1]["memory"]["found"]


def test_what_does_not_answer_is_named(tmp_path: Path) -> None:
    url = f"redis://:word@127.0.0.1:{unused_port()}"
    doctor = Doctor(tmp_path, FOLDIN_REDIS_URL=url)
    code, found, said = doctor("--timeout-s", 1, "--url", f"http://127.0.0.1:{unused_port()}")
    assert code == 1
    assert found["store"]["status"] == found["service"]["status"] == "fail"
    assert "word" not in said + json.dumps(found), "the password is not shown"
    code, found, _ = Doctor(tmp_path, FOLDIN_REDIS_URL="redis://host:port")()
    assert (code, found["settings"]["status"]) == (1, "fail")
    code, found, _ = Doctor(tmp_path, FOLDIN_PARTITIONS="many")()
    assert (code, found["settings"]["status"]) == (1, "fail")
    assert "FOLDIN_PARTITIONS must" in found["settings"]["found"]


async def test_a_namespace_a_service_and_an_archive(store_settings: StoreSettings, tmp_path: Path) -> None:
    variables = {
        "FOLDIN_REDIS_URL": store_settings.url,
        "FOLDIN_NAMESPACE": store_settings.namespace,
        "FOLDIN_PARTITIONS": str(store_settings.partitions),
    }
    archive = tmp_path / "archive"
    segments = archive / store_settings.namespace / "epoch-000001"
    segments.mkdir(parents=True)
    (segments / "x.parquet").touch()
    (segments.parent / "identity.json").write_text(json.dumps({"identity": "0" * 32, "format": 1}))
    async with serving(store_settings) as (client, _):

        async def look(**more: str) -> tuple[int, dict[str, dict[str, str]]]:
            doctor = Doctor(tmp_path, **{**variables, **more})
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


class _Asked(BaseHTTPRequestHandler):
    """Answers calls by path, others with 404, and keeps the keys that it was shown."""

    keys: ClassVar[list[str | None]]
    answers: ClassVar[dict[str, Any]]

    def do_GET(self) -> None:
        """Answer."""
        self.keys.append(self.headers.get("Authorization"))
        if self.path not in self.answers:
            self.send_error(404)
            return
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(self.answers[self.path]).encode())

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def asked(answers: dict[str, Any] | None = None) -> Iterator[tuple[str, list[str | None]]]:
    """A server, and the keys that it was shown so far."""
    keys: list[str | None] = []
    handler = type("Handler", (_Asked,), {"keys": keys, "answers": answers or {}})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", keys
        server.shutdown()


def test_the_key_of_a_stack_is_shown_to_that_stack_alone(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "operator.key").write_text("fk_own\n")
    (data / "operator.key").chmod(0o600)
    with asked() as (own, own_keys), asked() as (other, other_keys):
        content = {"pid": os.getpid(), "url": own, "environment_url": own, "store": {}}
        doctor = Doctor(tmp_path, FOLDIN_PORT=other.rpartition(":")[2])
        with locked(data):
            (data / "stack.json").write_text(json.dumps(content))
            for arguments in ((), ("--url", own), ("--data", data), ("--url", f"{own}/")):
                doctor("--timeout-s", 1, *arguments)
                assert "Bearer fk_own" in own_keys, arguments
                own_keys.clear()
            doctor("--timeout-s", 1, "--url", other)
            doctor("--timeout-s", 1, "--url", other, "--data", data)
        # What listens here when the stack is gone is another's.
        doctor("--timeout-s", 1)
        doctor("--timeout-s", 1, "--data", data)
        assert other_keys
        assert set(other_keys) == {None}


def test_a_stack_on_another_folder_is_looked_at_or_named(tmp_path: Path) -> None:
    data, other = tmp_path / "my data", tmp_path / "other"
    with stack(data, "--no-play") as up:
        ports = {"FOLDIN_PORT": str(up.port), "FOLDIN_ENVIRONMENT_PORT": str(up.environment_port)}
        doctor = Doctor(tmp_path, **ports)
        wait_until(lambda: http_ok("127.0.0.1", up.port, "/readyz"), "a generation is live")
        # It asks for no key, and tells: all that is found is of that stack.
        code, found, _ = doctor()
        assert code == 0, found
        assert found["disk"]["found"].startswith(f"{data}: ")
        assert f"{data}/archive" in found["archive"]["found"]
        assert found["trainer"]["status"] == found["service"]["status"] == "ok"
        # A folder that was named is the one that is looked at.
        code, found, _ = doctor("--data", other)
        assert (code, found["store"]["status"]) == (0, "warn")
        assert found["store"]["found"] == f"no stack runs on {other}; that of {up.url} has {data}"
        assert found["store"]["advice"] == f"foldin doctor --data '{data}'"
        assert "trainer" not in found
        foldin("keys", "add", "me", "--role", "operate", "--data", data).check_returncode()
        wait_until(lambda: not http_ok("127.0.0.1", up.port, "/settings"), "keys are asked for")
        # Now it tells nothing.
        _, found, _ = doctor()
        assert "a service answers at" in found["store"]["found"]
        assert "by --data" in found["store"]["advice"]
        assert "foldin up" not in found["store"]["advice"]


def test_a_folder_that_a_service_names_is_believed_where_it_says_so_itself(tmp_path: Path) -> None:
    data = tmp_path / "elsewhere"
    data.mkdir()
    (data / "operator.key").write_text("fk_own\n")
    (data / "operator.key").chmod(0o600)
    settings = {"settings": [{"name": "FOLDIN_CACHE_DIR", "value": str(data / "cache")}]}
    with asked({"/settings": settings, "/livez": {"alive": True}}) as (service, keys), locked(data):
        content = {"pid": os.getpid(), "url": "http://127.0.0.1:1", "environment_url": "", "store": {}}
        (data / "stack.json").write_text(json.dumps(content))
        _, found, _ = Doctor(tmp_path, FOLDIN_PORT=service.rpartition(":")[2])("--timeout-s", 1)
    assert "a service answers at" in found["store"]["found"]
    assert set(keys) == {None}


def info(**more: object) -> dict[str, Any]:
    good = {
        "redis_version": "8.0.0",
        "aof_enabled": 1,
        "aof_last_write_status": "ok",
        "aof_last_bgrewrite_status": "ok",
        "maxmemory_policy": "noeviction",
    }
    return {**good, **more}


@pytest.mark.parametrize(
    ("found", "status", "words"),
    [
        (store.version(info(redis_version="6.2.1"), "x"), "fail", "too old"),
        (store.version(info(valkey_version="8.1.0"), "x"), "ok", "Valkey 8.1.0 at x"),
        (store.version(info(cluster_enabled=1), "x"), "fail", "cluster"),
        (store.persistence(info(), "always", "store"), "ok", "always"),
        (store.persistence(info(), "everysec", "store"), "warn", "may cost"),
        (store.persistence(info(), "everysec", "fsync"), "ok", "everysec"),
        (store.persistence(info(), None, "store"), "warn", "untold"),
        (store.persistence(info(aof_last_write_status="err"), "always", "store"), "fail", "last write"),
        (store.persistence(info(aof_last_bgrewrite_status="err"), "always", "store"), "warn", "grows"),
        (store.memory_room(info(used_memory=50, maxmemory=100), None), "ok", "50%"),
        (store.memory_room(info(used_memory=90, maxmemory=100), None), "warn", "90%"),
        (store.memory_room(info(used_memory=99, maxmemory=100), None), "fail", "refused"),
        (
            store.memory_room(info(used_memory=99, mem_not_counted_for_evict=50, maxmemory=100), None),
            "ok",
            "49%",
        ),
        (store.memory_room(info(used_memory=1), None), "warn", "no limit"),
        (store.memory_room(info(used_memory=2**30), 2**31), "ok", "2,048 MB left"),
        (store.memory_room(info(used_memory=2**31), 2**30), "warn", "no limit"),
        (store.namespace({b"arriving": b"0a"}, StoreSettings("redis://one")), "fail", "not whole"),
        (store.migration(b"copying 0a", runs=False)[0], "warn", "cut off"),
        (store.migration(b"moved 0a redis://two", runs=False)[0], "fail", "ratings are refused"),
        (store.migration(b"closing 0a", runs=True)[0], "ok", "runs"),
        (store.migration(b"gone 0a redis://two", runs=False)[0], "fail", "moved to redis://two"),
        (store.clock("clock", 0.4, 0.5), "ok", "as this one"),
        (store.clock("clock", 3.0, 0.5), "warn", "2.5 s ahead of"),
        (store.clock("clock", -300.0, 0.5), "fail", "299.5 s behind"),
    ],
)
def test_findings_in_a_store(found: Finding, status: str, words: str) -> None:
    assert found.status == status, found
    assert words in found.found
    assert bool(found.advice) == (status != "ok")


def test_findings_on_a_machine(tmp_path: Path) -> None:
    assert machine.disk_room(tmp_path / "not" / "there").status in {"ok", "warn"}
    file = tmp_path / "file"
    file.touch()
    assert machine.disk_room(file).status == "fail"
    assert machine.disk_room(file / "inside").status == "fail"
    port = unused_port()
    ours = {"service": ("127.0.0.1", port, "/livez")}
    assert [each.status for each in machine.ports(ours, runs=False)] == ["ok"]
    assert [each.status for each in machine.ports(ours, runs=True)] == ["fail"]
    began = time.monotonic()
    import socket

    with socket.create_server(("127.0.0.1", port)):  # one that never answers
        (taken,) = machine.ports(ours, runs=False)
        assert (taken.status, "in use" in taken.found) == ("warn", True)
    assert time.monotonic() - began < 10.0
    assert worst([]) == "ok"
