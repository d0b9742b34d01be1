"""Heads without an end take no worker's memory."""

from pathlib import Path

import pytest

from featurestore.store import Store
from tests.support.serving import processes
from torture.flood import flood, memory_bytes

pytestmark = pytest.mark.fault


def test_heads_without_an_end_take_no_memory(store: Store, tmp_path: Path) -> None:
    with processes(store.settings, tmp_path) as service:
        [worker] = service.worker_pids() or [service.process.pid]
        before = memory_bytes(worker)
        with flood(service.port):
            during = memory_bytes(worker)
        service.wait_for("/livez")
        after = memory_bytes(worker)
    assert max(during, after) - before < 100 * 2**20, [each >> 20 for each in (before, during, after)]
