"""What a process may use, as its control group says."""

import os
from pathlib import Path

import pytest

from processes.container import memory_left, usable_cores


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(8)), raising=False)


@pytest.mark.parametrize(
    ("quota", "cores"),
    [
        ("max 100000", 8),
        ("200000 100000", 2),
        ("250000 100000", 2),
        ("50000 100000", 1),
        ("1600000 100000", 8),
        ("", 8),
        ("x 0", 8),
    ],
)
def test_version_2(tmp_path: Path, quota: str, cores: int) -> None:
    (tmp_path / "cpu.max").write_text(quota + "\n")
    assert usable_cores(tmp_path) == cores


@pytest.mark.parametrize(("quota", "cores"), [("-1", 8), ("300000", 3)])
def test_version_1(tmp_path: Path, quota: str, cores: int) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu/cpu.cfs_quota_us").write_text(quota + "\n")
    (tmp_path / "cpu/cpu.cfs_period_us").write_text("100000\n")
    assert usable_cores(tmp_path) == cores


def test_no_control_group(tmp_path: Path) -> None:
    assert usable_cores(tmp_path / "none") == 8
    assert memory_left(tmp_path / "none") is None


@pytest.mark.parametrize(("limit", "left"), [("1000", (500, 1000)), ("max", None), ("", None)])
def test_memory_of_version_2(tmp_path: Path, limit: str, left: tuple[int, int] | None) -> None:
    (tmp_path / "memory.max").write_text(limit + "\n")
    (tmp_path / "memory.current").write_text("800\n")
    (tmp_path / "memory.stat").write_text("anon 500\ninactive_file 200\nactive_file 100\nodd\n")
    assert memory_left(tmp_path) == left


@pytest.mark.parametrize(("limit", "left"), [(1000, (200, 1000)), (2**63 - 4096, None)])
def test_memory_of_version_1(tmp_path: Path, limit: int, left: tuple[int, int] | None) -> None:
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory/memory.limit_in_bytes").write_text(f"{limit}\n")
    (tmp_path / "memory/memory.usage_in_bytes").write_text("900\n")
    (tmp_path / "memory/memory.stat").write_text("inactive_file 7\ntotal_inactive_file 100\n")
    assert memory_left(tmp_path) == left
