"""`rediss://`: both ways to the store, the shared socket and redis-py, over TLS of a real server, and only
with one whose certificate is known.
"""

import asyncio
import contextlib
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from featurestore.access import count_of, new_secret
from featurestore.errors import StoreUnavailable
from featurestore.settings import StoreSettings
from featurestore.store import Store
from featurestore.telemetry.servers import look_at_servers
from foldin.cluster.__main__ import servers_of
from foldin.cluster.forming import form
from processes.blocking import BlockingChild
from processes.errors import ChildEndedError
from processes.probes import unused_cluster_port, unused_port
from tests.support.certificates import certificate
from tests.support.factories import rating
from tests.support.servers import missing, running_server, server_binary
from tests.support.waiting import wait_until_async

# The Valkey of the lock was built without TLS.
pytestmark = pytest.mark.slow


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[StoreSettings]:
    """A store that speaks TLS, on a port beside the plain one by which tests see that it runs."""
    known, port = certificate(tmp_path, "server"), unused_port()
    options = ["--tls-port", str(port), "--tls-auth-clients", "no", "--tls-ca-cert-file", str(known)]
    options += ["--tls-cert-file", str(known), "--tls-key-file", str(known.with_suffix(".key"))]
    try:
        with running_server("redis", tmp_path, *options):
            url = f"rediss://localhost:{port}?ssl_ca_certs={known}"
            yield StoreSettings(url=url, partitions=2, timeout_s=5.0)
    except ChildEndedError:
        missing("a redis-server with TLS")


async def test_a_store_is_used_over_tls_and_only_with_a_certificate_that_is_known(
    settings: StoreSettings, tmp_path: Path
) -> None:
    store = await Store.open(settings)
    await store.ratings.append([rating("ann", "dune", 5.0)])
    assert (await store.users.history(1, b"ann"))[0] == 1
    await store.access.add(new_secret(), "one", "read")
    assert count_of(await store.access.load()) == 1
    await store.close()
    other, address = certificate(tmp_path, "other"), settings.url.partition("?")[0]
    for url in (
        address,
        f"{address}?ssl_ca_certs={other}",
        settings.url.replace("rediss://localhost", "rediss://127.0.0.2"),
        # Plain speech to a port of TLS.
        address.replace("rediss", "redis"),
    ):
        with pytest.raises(StoreUnavailable):
            await Store.open(replace(settings, url=url, timeout_s=1.0))


@pytest.mark.slow
async def test_sentinels_are_asked_over_tls_by_name_and_password(tmp_path: Path) -> None:
    """As the store is: one certificate authority, one password."""
    known, ports = certificate(tmp_path, "server"), (unused_port(), unused_port())
    tls = ["--tls-replication", "yes", "--tls-auth-clients", "no", "--tls-ca-cert-file", str(known)]
    tls += ["--tls-cert-file", str(known), "--tls-key-file", str(known.with_suffix(".key"))]
    config = tmp_path / "sentinel.conf"
    config.write_text(
        "sentinel resolve-hostnames yes\nsentinel announce-hostnames yes\n"
        f"sentinel monitor main localhost {ports[0]} 1\nsentinel auth-pass main hunter2\n",
        "utf-8",
    )
    tls += ["--requirepass", "hunter2"]
    try:
        with running_server("redis", tmp_path, "--tls-port", str(ports[0]), *tls):
            command = [str(server_binary("redis")), str(config), "--sentinel", "--port", "0"]
            command += ["--tls-port", str(ports[1]), "--dir", str(tmp_path), *tls]
            with BlockingChild(command, tmp_path / "sentinel.log", dies_by=signal.SIGKILL):
                url = f"rediss+sentinel://:hunter2@localhost:{ports[1]}/main?ssl_ca_certs={known}"
                settings = StoreSettings(url=url, partitions=2, timeout_s=5.0)

                async def opened() -> Store | None:
                    with contextlib.suppress(StoreUnavailable):
                        return await Store.open(settings)
                    return None

                store: Store = await wait_until_async(opened, "the sentinel tells the address")
                await store.ratings.append([rating("ann", "dune", 5.0)])
                assert await store.time() > 0
                await store.close()
    except ChildEndedError:
        missing("a redis-server with TLS")


@pytest.mark.slow
async def test_a_cluster_is_formed_and_used_over_tls(tmp_path: Path) -> None:
    """Each server by the name that is in its certificate, as the cluster announces it."""
    known = certificate(tmp_path, "server")
    port = unused_cluster_port()
    options = ["--tls-port", str(port), "--tls-auth-clients", "no", "--tls-ca-cert-file", str(known)]
    options += ["--tls-cert-file", str(known), "--tls-key-file", str(known.with_suffix(".key"))]
    options += ["--tls-cluster", "yes", "--cluster-enabled", "yes", "--requirepass", "hunter2"]
    options += ["--cluster-announce-hostname", "localhost", "--cluster-preferred-endpoint-type", "hostname"]
    try:
        with running_server("redis", tmp_path, *options):
            url = f"rediss+cluster://:hunter2@localhost:{port}?ssl_ca_certs={known}"
            settings = StoreSettings(url=url, partitions=8, timeout_s=5.0)
            await asyncio.to_thread(form, servers_of(settings), 1)
            store = await Store.open(settings)
            await store.ratings.append([rating("ann", "dune", 5.0)])
            assert (await store.users.history(1, b"ann"))[0] == 1
            (server,) = await look_at_servers(store.redis)
            assert (server.address, server.slots) == (f"localhost:{port}", 16_384)
            await store.close()
    except ChildEndedError:
        missing("a redis-server with TLS")
