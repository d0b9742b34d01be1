"""Real processes: start, workers, signals."""

import asyncio
import os
import signal
import socket
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from featurestore.settings import StoreSettings
from featurestore.store import Store
from tests.support.factories import Written, publish_for_ann
from tests.support.servers import StoreServer
from tests.support.serving import Service, client_of, processes
from tests.support.waiting import PATIENCE_S, wait_until, wait_until_async

# A worker takes a second to start, and many times that on a machine where others are busy.
pytestmark = pytest.mark.timeout(300)
ITEMS = 8


@pytest.fixture
async def published(store: Store) -> Written:
    return await publish_for_ann(store, {f"item-{row}": 1.0 + row for row in range(3)}, ITEMS)


@pytest.mark.slow
def test_two_workers_end_in_order_and_with_their_supervisor(
    store_settings: StoreSettings, published: Written, tmp_path: Path
) -> None:
    with processes(store_settings, tmp_path, workers=2) as service:
        service.wait_for()
        # The second one starts when the first one serves.
        wait_until(lambda: len(service.worker_pids()) == 2, "both run")
        pids = service.worker_pids()
        # Another group does not join this one.
        second = Service(store_settings, tmp_path, workers=2, port=service.port)
        assert second.process.wait(PATIENCE_S) == 2
        assert service.end(signal.SIGINT) == 0
        assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_a_request_in_flight_is_answered(
    store_settings: StoreSettings, published: Written, tmp_path: Path
) -> None:
    body = b'{"user_id": "eve", "item_id": "item-1", "rating": 4}'
    with (
        processes(store_settings, tmp_path) as service,
        socket.create_connection(("127.0.0.1", service.port)) as sent,
    ):
        sent.settimeout(PATIENCE_S)
        head = b"POST /ratings HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        sent.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body) + body[:20])
        wait_until(lambda: b'"in_flight":2' in raw_get(service.port, "/status"), "the request is in flight")
        service.process.send_signal(signal.SIGTERM)
        wait_until(lambda: not connects(service.port), "nothing new is accepted")
        sent.sendall(body[20:])
        answer = sent.recv(65536)
        assert answer.startswith(b"HTTP/1.1 200 OK")
        assert b"Connection: close" in answer
        assert service.process.wait(PATIENCE_S) == 0
        assert f"service listens on {service.url}" in service.log.read_text("utf-8")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("wrong", "named"),
    [("port", ["{port}"]), ("scale", ["scale"]), ("settings", ["FOLDIN_SCALE", "FOLDIN_NAMESPACE"])],
)
def test_a_start_that_cannot_be_is_told_in_a_line_and_ends_with_code_2(
    store_settings: StoreSettings, published: Written, tmp_path: Path, wrong: str, named: list[str]
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        changed = {"port": {}, "scale": {"scale": "0:10"}, "settings": {"scale": "5:1", "namespace": "a b"}}
        settings = replace(store_settings, **changed[wrong])
        service = Service(settings, tmp_path, workers=2, port=port if wrong == "port" else None)
        assert service.process.wait(PATIENCE_S) == 2
        text = service.log.read_text("utf-8")
        assert wrong == "settings" or len(text.strip().splitlines()) == 1
        assert all(each.format(port=port) in text for each in named), text


def raw_get(port: int, path: str) -> bytes:
    """On a connection of its own; as patient as a worker takes to start on a busy machine."""
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        found = b""
        while chunk := connection.recv(65536):
            found += chunk
        return found


def connects(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S):
            return True
    except OSError:
        return False


@pytest.mark.slow
def test_it_waits_for_a_store_that_is_not_there_yet(own_server: StoreServer, tmp_path: Path) -> None:
    own_server.stop()
    service = Service(StoreSettings(url=own_server.url, partitions=2), tmp_path)
    try:
        said = "waiting for the feature store"
        wait_until(lambda: said in service.log.read_text("utf-8"), "it says what it waits for")
        own_server.start()
        service.wait_for("/livez")
        assert service.end() == 0
    finally:
        service.end()


@pytest.mark.slow
async def test_a_killed_worker_is_replaced_and_its_counts_go_on(
    store_settings: StoreSettings, published: Written, tmp_path: Path
) -> None:
    with processes(store_settings, tmp_path, workers=2) as service:
        await asyncio.to_thread(wait_until, lambda: len(service.worker_pids()) == 2, "two workers run")
        async with client_of(service.url) as client:

            async def both_count() -> bool:
                return len((await client.get("/status")).json["workers"]) == 2

            await wait_until_async(both_count, "both have left their counts")
            for _ in range(40):
                assert (
                    await client.post("/ratings", {"user_id": "u", "item_id": "item-1", "rating": 3})
                ).status == 200

            # New connections go to either worker: that all see all says that both have left their counts.
            def counted() -> bool:
                return all(b'"accepted_ratings":40,' in raw_get(service.port, "/status") for _ in range(20))

            await asyncio.to_thread(wait_until, counted, "all ratings are counted by both")
            victim = service.worker_pids()[0]
            os.kill(victim, signal.SIGKILL)

            def replaced() -> bool:
                pids = service.worker_pids()
                return len(pids) == 2 and victim not in pids

            await asyncio.to_thread(wait_until, replaced, "another worker runs")
            await asyncio.to_thread(wait_until, counted, "no count fell")


@pytest.mark.slow
async def test_the_restart_of_a_worker_loses_no_request(
    store_settings: StoreSettings, published: Written, tmp_path: Path
) -> None:
    """New connections throughout: those that wait for the worker that ends are answered by its successor."""
    with processes(store_settings, tmp_path, workers=2) as service:
        await asyncio.to_thread(wait_until, lambda: len(service.worker_pids()) == 2, "two workers run")
        stop, failures = threading.Event(), list[str]()
        counts = [0] * 4

        def ask(client: int) -> None:
            while not stop.is_set():
                found = raw_get(service.port, "/predict?user_id=ann&item_id=item-5")
                if not found.startswith(b"HTTP/1.1 200"):
                    failures.append(found.decode())
                counts[client] += 1

        asking = [asyncio.create_task(asyncio.to_thread(ask, client)) for client in range(4)]
        try:
            for _ in range(2):
                victim = service.worker_pids()[0]
                os.kill(victim, signal.SIGTERM)

                def replaced(victim: int = victim) -> bool:
                    pids = service.worker_pids()
                    return len(pids) == 2 and victim not in pids

                await asyncio.to_thread(wait_until, replaced, "another worker runs")
                before = sum(counts)
                await asyncio.to_thread(wait_until, lambda b=before: sum(counts) > b + 20, "it goes on")
        finally:
            stop.set()
            await asyncio.gather(*asking)
        assert failures == []
