"""The service over TLS: every call as over plain HTTP, and a certificate that cannot be used ends the
start.
"""

import ssl
from pathlib import Path

import aiohttp
import pytest

from featurestore.settings import StoreSettings
from featurestore.store import Store
from tests.support.certificates import certificate
from tests.support.factories import lead, publish
from tests.support.serving import Service
from tests.support.waiting import PATIENCE_S, wait_until


@pytest.mark.slow
async def test_every_call_goes_over_tls(store_settings: StoreSettings, store: Store, tmp_path: Path) -> None:
    await store.items(1).register([b"dune"])
    await publish(store, await lead(store), n_items=1, users=[b"ann"])
    known = certificate(tmp_path, "known")
    said = {"FOLDIN_TLS_CERT": str(known), "FOLDIN_TLS_KEY": str(known.with_suffix(".key"))}
    service = Service(store_settings, tmp_path, environment=said, workers=2)
    try:
        wait_until(lambda: f"listens on https://127.0.0.1:{service.port}" in service.process.text, "it")
        url = f"https://127.0.0.1:{service.port}"
        connector = aiohttp.TCPConnector(ssl=ssl.create_default_context(cafile=known))
        async with aiohttp.ClientSession(url, connector=connector) as session:
            for _ in range(3):
                async with session.get("/predict?user_id=ann&item_id=dune") as answer:
                    assert answer.status == 200
            # Many pairs come back in many records.
            body = {"user_id": "ann", "item_ids": ["dune"] * 10_000}
            async with session.post("/predict", json=body) as answer:
                assert len((await answer.json())["predictions"]) == 10_000
        # A client that does not know the certificate, and one that does not speak TLS.
        async with aiohttp.ClientSession() as session:
            with pytest.raises(aiohttp.ClientSSLError):
                await session.get(f"{url}/livez")
        assert not service.answers("/livez")
    finally:
        service.end()


@pytest.mark.slow
@pytest.mark.parametrize("wrong", ["none", "no certificate", "another key", "key alone"])
def test_a_certificate_that_cannot_be_used_ends_the_start(
    store_settings: StoreSettings, tmp_path: Path, wrong: str
) -> None:
    known, other = certificate(tmp_path, "known"), certificate(tmp_path, "other")
    said = {"FOLDIN_TLS_CERT": str(known), "FOLDIN_TLS_KEY": str(known.with_suffix(".key"))}
    match wrong:
        case "none":
            said["FOLDIN_TLS_CERT"] = str(tmp_path / "none.crt")
        case "no certificate":
            known.write_text("nothing\n")
        case "another key":
            said["FOLDIN_TLS_KEY"] = str(other.with_suffix(".key"))
        case _:
            del said["FOLDIN_TLS_CERT"]
    service = Service(store_settings, tmp_path, environment=said, workers=2)
    try:
        assert service.process.wait(PATIENCE_S) == 2
        lines = service.process.text.strip().splitlines()
        assert "FOLDIN_TLS_CERT" in lines[-1]
        assert "Traceback" not in service.process.text
    finally:
        service.end()
