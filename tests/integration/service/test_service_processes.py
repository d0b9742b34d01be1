"""Real processes: start, workers, signals."""

import asyncio
import os
import signal
import socket
import threading
from pathlib import Path

import pytest
from aiohttp import web

from featurestore.settings import StoreSettings
from service.server.supervisor import bind
from service.server.worker import Site, tls_context
from tests.support.certificates import certificate
from tests.support.factories import Written
from tests.support.serving import Service, client_of, processes, send_raw
from tests.support.waiting import PATIENCE_S, wait_until, wait_until_async

# A worker takes a second to start, and many times that on a machine where others are busy.
pytestmark = pytest.mark.timeout(300)
PAIR = "/predict?user_id=ann&item_id=item-5"


def raw_get(port: int, path: str) -> bytes:
    return send_raw(port, f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())


def connects(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S):
            return True
    except OSError:
        return False


def replaced(service: Service, how: signal.Signals) -> None:
    victim = service.worker_pids()[0]
    os.kill(victim, how)
    wait_until(service.worker_pids, "another runs", lambda pids: len(pids) == 2 and victim not in pids)


def test_the_end_answers_what_is_in_flight(
    store_settings: StoreSettings, published: Written, tmp_path: Path
) -> None:
    body = b'{"user_id": "eve", "item_id": "item-1", "rating": 4}'
    with (
        processes(store_settings, tmp_path) as service,
        socket.create_connection(("127.0.0.1", service.port), timeout=PATIENCE_S) as sent,
    ):
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
async def test_a_worker_that_ends_is_replaced_its_counts_go_on_and_no_request_is_lost(
    store_settings: StoreSettings, published: Written, tmp_path: Path
) -> None:
    """New connections throughout: those that wait for the worker that ends are answered by its successor."""
    with processes(store_settings, tmp_path, workers=2) as service:
        await asyncio.to_thread(wait_until, lambda: len(service.worker_pids()) == 2, "two workers run")
        stop, failures, counts = threading.Event(), list[str](), [0] * 4

        def ask(client: int) -> None:
            while not stop.is_set():
                found = raw_get(service.port, PAIR)
                if not found.startswith(b"HTTP/1.1 200"):
                    failures.append(found.decode())
                counts[client] += 1

        asking = [asyncio.create_task(asyncio.to_thread(ask, client)) for client in range(4)]
        try:
            for _ in range(2):
                await asyncio.to_thread(replaced, service, signal.SIGTERM)
                before = sum(counts)
                await asyncio.to_thread(wait_until, lambda b=before: sum(counts) > b + 20, "it goes on")
        finally:
            stop.set()
            await asyncio.gather(*asking)
        assert failures == []
        async with client_of(service.url) as client:
            await wait_until_async(
                lambda: client.get("/status"),
                "both have left their counts",
                lambda reply: len(reply.json["workers"]) == 2,
            )
            for _ in range(40):
                rated = {"user_id": "u", "item_id": "item-1", "rating": 3}
                assert (await client.post("/ratings", rated)).status == 200

        # New connections go to either worker: that all see all says that both have left their counts.
        def counted() -> bool:
            return all(b'"accepted_ratings":40,' in raw_get(service.port, "/status") for _ in range(20))

        await asyncio.to_thread(wait_until, counted, "all ratings are counted by both")
        await asyncio.to_thread(replaced, service, signal.SIGKILL)
        await asyncio.to_thread(wait_until, counted, "no count fell")


async def test_a_handshake_that_does_not_come_is_given_up(tmp_path: Path) -> None:
    known = certificate(tmp_path, "server")
    sock = bind("127.0.0.1", 0, 1)[0]
    runner = web.AppRunner(web.Application())
    await runner.setup()
    try:
        await Site(runner, sock, tls_context(known, known.with_suffix(".key")), handshake_s=0.1).start()
        reader, writer = await asyncio.open_connection(*sock.getsockname())
        assert await reader.read() == b""
        writer.close()
    finally:
        await runner.cleanup()
