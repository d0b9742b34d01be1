"""The fast path of GET /predict is one file: a service from which it was deleted answers the same."""

import shutil
from pathlib import Path

import pytest

from featurestore.settings import StoreSettings
from featurestore.store import Store
from tests.support import house
from tests.support.factories import lead, publish, rating
from tests.support.serving import Service, client_of

FAST = Path("service/server/fast_predict.py")
# Says in the log that it is the copy which runs: the ordinary service would answer the same.
MARK = "no fast path here"
# The line that imports it, and the one that uses it.
LINES = {
    "service.server.fast_predict import fast_connections\n": "service.http.dispatch import Connection\n",
    "self._connect = fast_connections(context)\n": "self._connect = Connection\n",
}


def without_fast_path(folder: Path) -> Path:
    """A copy of the service's packages from which the fast path was deleted."""
    for package in ("factors", "featurestore", "processes", "service"):
        shutil.copytree(house.ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / FAST).unlink()
    connections = folder / "service/server/connections.py"
    text = connections.read_text("utf-8")
    for line, instead in LINES.items():
        assert line in text
        text = text.replace(line, instead)
    connections.write_text(f"{text}\nprint({MARK!r}, flush=True)\n", "utf-8")
    return folder


@pytest.mark.slow
async def test_the_service_runs_with_the_fast_path_deleted(
    store: Store, store_settings: StoreSettings, tmp_path: Path
) -> None:
    await store.items(1).register([b"item-%d" % row for row in range(8)])
    await store.ratings.append([rating("ann", f"item-{row}", 1.0 + row) for row in range(3)])
    await publish(store, await lead(store), n_items=8, users=[b"ann"])
    checkout = without_fast_path(tmp_path / "checkout")
    services = [Service(store_settings, tmp_path), Service(store_settings, tmp_path, checkout=checkout)]
    pairs = [f"/predict?user_id={user}&item_id=item-{row}" for user in ("ann", "new") for row in (1, 7, 99)]
    wrong = [
        "/predict?user_id=ann",
        "/predict?user_id=ann&item_id=1&timestamp=x",
        "/predict?user_id=%ff&item_id=1",
    ]
    heard = []
    try:
        for service in services:
            service.wait_for()
            async with client_of(service.url) as client:
                replies = [await client.get(path, headers={"X-Request-ID": "r1"}) for path in pairs + wrong]
                heard.append([(reply.status, reply.text, set(reply.headers)) for reply in replies])
    finally:
        for service in services:
            assert service.end() == 0
    assert [MARK in service.log.read_text("utf-8") for service in services] == [False, True]
    assert heard[0] == heard[1]
    assert [status for status, _, _ in heard[0]] == [200] * len(pairs) + [400] * len(wrong)
