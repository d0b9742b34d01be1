"""The script that starts the store of a container (`deploy/redis/start.sh`), on a disk that fills up."""

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as LostConnection
from redis.retry import Retry

from processes.blocking import BlockingChild
from processes.probes import redis_pong, unused_port
from tests.support import house
from tests.support.disks import leave_free, small_disk
from tests.support.servers import KINDS, START_S, STOP_S, ServerKind, missing, server_binary
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.fault, pytest.mark.parametrize("kind", KINDS)]


@dataclass(frozen=True, slots=True)
class Container:
    process: BlockingChild
    disk: Path
    port: int

    def waits(self) -> bool:
        """Whether it waits for room; the probe of Kubernetes looks there, too."""
        return (self.disk.parent / "tmp/waits-for-room").exists()

    def answers(self) -> bool:
        return redis_pong(("127.0.0.1", self.port))

    def fill(self) -> int:
        leave_free(self.disk, 1)
        done = 0

        def overfill(store: Redis) -> None:
            nonlocal done
            for done in range(100):
                store.set(f"other:{done}", b"x" * 2**16)

        with self.client() as store, pytest.raises(LostConnection):
            overfill(store)
        wait_until(self.waits, "it waits for room")
        return done

    def client(self) -> Redis:
        return Redis(port=self.port, retry=Retry(NoBackoff(), 0))


@contextmanager
def container(
    kind: ServerKind, folder: Path, options: Sequence[str] = (), *, size_mb: int = 64
) -> Iterator[Container]:
    """Start it on a small disk, with the options of the Compose file; folders have the names of this test."""
    binary = server_binary(kind)
    if binary is None:
        missing(f"{kind}-server")
    (folder / "tmp").mkdir()
    script = (house.ROOT / "deploy/redis/start.sh").read_text("utf-8")
    script = script.replace("/data/", f"{folder}/disk/").replace("/tmp/waits", f"{folder}/tmp/waits")
    compose = yaml.safe_load((house.ROOT / "docker-compose.yml").read_text("utf-8"))
    told = [each for each in compose["services"]["redis"]["command"][1:] if each != "/acl/users.acl"]
    told.remove("--aclfile")
    told = ["0" if "REDIS_MEMORY" in each else each.replace("/data", f"{folder}/disk") for each in told]
    port = unused_port()
    command = ["/bin/sh", "-c", script, "start.sh", str(binary), *told, "--port", str(port), *options]
    with small_disk(folder / "disk", size_mb) as disk:
        process = BlockingChild(command, folder / "log")
        try:
            yield Container(process, disk, port)
        finally:
            process.end(signal.SIGTERM, STOP_S)


def test_a_store_whose_disk_was_full_is_back_in_the_same_container(kind: ServerKind, tmp_path: Path) -> None:
    with container(kind, tmp_path) as store:
        store.process.wait_ready(store.answers, START_S)
        done = store.fill()
        (store.disk / "temp-rewriteaof-7.aof").touch()
        (store.disk / "filler").unlink()
        wait_until(store.answers, "the store is back")
        assert not store.waits()
        assert not list(store.disk.glob("temp-*"))
        with store.client() as client:
            # Each that was acknowledged; the last may be there, too.
            assert client.exists(*(f"other:{n}" for n in range(done))) == done
        # And once more.
        store.fill()
        (store.disk / "filler").unlink()
        wait_until(store.answers, "the store is back again")
        assert store.process.text.count("the disk of the store is full") == 2
        # `docker stop`: in order, with the code of the server.
        assert store.process.end(signal.SIGTERM, STOP_S) == 0
        assert "bye bye" in store.process.text
