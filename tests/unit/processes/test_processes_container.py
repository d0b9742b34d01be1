"""What a process may use, as its control group says."""

import os
from pathlib import Path

import pytest

from processes.container import memory_left, usable_cores


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(8)), raising=False)


def test_cores_of_either_version(tmp_path: Path) -> None:
    quotas = {"max 100000": 8, "250000 100000": 2, "50000 100000": 1, "1600000 100000": 8, "": 8, "x 0": 8}
    for quota, cores in quotas.items():
        (tmp_path / "cpu.max").write_text(quota + "\n")
        assert usable_cores(tmp_path) == cores
    older = tmp_path / "older"
    (older / "cpu").mkdir(parents=True)
    (older / "cpu/cpu.cfs_period_us").write_text("100000\n")
    for quota, cores in {"-1": 8, "300000": 3}.items():
        (older / "cpu/cpu.cfs_quota_us").write_text(quota + "\n")
        assert usable_cores(older) == cores
    assert usable_cores(tmp_path / "none") == 8


def test_memory_of_either_version(tmp_path: Path) -> None:
    (tmp_path / "memory.current").write_text("800\n")
    (tmp_path / "memory.stat").write_text("anon 500\ninactive_file 200\nactive_file 100\nodd\n")
    for limit, left in {"1000": (500, 1000), "max": None, "": None}.items():
        (tmp_path / "memory.max").write_text(limit + "\n")
        assert memory_left(tmp_path) == left
    older = tmp_path / "older/memory"
    older.mkdir(parents=True)
    (older / "memory.usage_in_bytes").write_text("900\n")
    (older / "memory.stat").write_text("inactive_file 7\ntotal_inactive_file 100\n")
    for limited, room in {1000: (200, 1000), 2**63 - 4096: None}.items():
        (older / "memory.limit_in_bytes").write_text(f"{limited}\n")
        assert memory_left(older.parent) == room
    assert memory_left(tmp_path / "none") is None
