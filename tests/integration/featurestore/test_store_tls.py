"""`rediss://`: the shared socket and redis-py over TLS, and only with a certificate that is known."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from featurestore.access import count_of, new_secret
from featurestore.errors import StoreUnavailable
from featurestore.settings import StoreSettings
from featurestore.store import Store
from processes.errors import ChildEndedError
from processes.probes import unused_port
from tests.support.certificates import certificate
from tests.support.factories import opened, rating
from tests.support.servers import missing, running_server

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
            yield StoreSettings(url=url, partitions=2, timeout_s=30.0)
    except ChildEndedError:
        missing("a redis-server with TLS")


async def test_a_store_is_used_over_tls_and_only_with_a_certificate_that_is_known(
    settings: StoreSettings, tmp_path: Path
) -> None:
    async with opened(settings) as store:
        await store.ratings.append([rating("ann", "dune", 5.0)])
        assert (await store.users.history(1, b"ann"))[0] == 1
        await store.access.add(new_secret(), "one", "read")
        assert count_of(await store.access.load()) == 1
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
