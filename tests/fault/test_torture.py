"""`foldin torture`, short: a whole stack under every fault, and stacks with one protection taken out, in
which the same auditor must find what goes wrong.
"""

import os
import shutil
from pathlib import Path

import pytest

from tests.support.servers import missing
from torture.auditor import ARCHIVE, BACK, GENERATION, NEXT, POINTER, SAME
from torture.campaign import torture
from torture.clients import ORDER, READ
from torture.faults import names_of
from torture.report import Report

pytestmark = [pytest.mark.slow, pytest.mark.fault, pytest.mark.timeout(800)]
# Of faults, in one short torture or two.
LEAST_KINDS = 4


@pytest.fixture(autouse=True)
def _compiler() -> None:
    if shutil.which("cc") is None:
        missing("a C compiler")


@pytest.fixture
def seed(pytestconfig: pytest.Config) -> int:
    """That of the order of the tests, which is the commit's in CI: there is time for some of the faults, and
    for others with another commit.
    """
    return int(pytestconfig.getoption("randomly_seed", 1))


async def test_nothing_is_lost_stale_mixed_or_remembered_under_any_fault(tmp_path: Path, seed: int) -> None:
    # A history of so many users that a process of its own publishes them takes minutes of a busy machine.
    faults = [name for name in names_of("one") if "publication" not in name]
    kinds = set[str]()
    # How many there is time for hangs on the machine, and on which come first.
    for turn in range(2):
        folder = tmp_path / str(turn)
        folder.mkdir()
        report = await torture(100, seed + turn, folder, os.environ, faults=faults)
        assert report.violations == [], report.lines()
        kinds |= {name for name, count in report.faults.items() if count > 0}
        if len(kinds) >= LEAST_KINDS:
            break
    assert len(kinds) >= LEAST_KINDS, report.lines()
    assert set(report.checks) >= {ARCHIVE, BACK, GENERATION, ORDER, POINTER, READ, SAME}, report.lines()
    # Refits may be refused for the newest ratings, which are drawn at random: that is counted.
    assert report.checks[NEXT] + report.unjudged[NEXT] > 0, report.lines()
    # What could have more explanations than are tried shows nothing.
    assert report.unjudged[GENERATION] < report.checks[GENERATION] / 2, report.lines()


async def test_promotions_of_a_replica_lose_nothing(tmp_path: Path, seed: int) -> None:
    faults = [name for name in names_of("replicas") if "promotion" in name]
    report = await torture(60, seed, tmp_path, os.environ, faults=faults, kind="replicas")
    assert report.violations == [], report.lines()
    assert sum(report.faults.values()) >= 2, report.lines()
    assert set(report.checks) >= {ARCHIVE, BACK, ORDER, POINTER, READ, SAME}, report.lines()


async def test_a_cluster_whose_slots_move_and_whose_servers_go_loses_nothing(
    tmp_path: Path, seed: int
) -> None:
    faults = [name for name in names_of("cluster") if "promotion" in name or "slot" in name]
    report = await torture(60, seed, tmp_path, os.environ, faults=faults, kind="cluster")
    assert report.violations == [], report.lines()
    assert sum(report.faults.values()) >= 2, report.lines()
    assert set(report.checks) >= {ARCHIVE, BACK, ORDER, POINTER, READ, SAME}, report.lines()


WEAKENED = {
    "no-sync": ("power cut", {READ, ARCHIVE, POINTER}),
    "no-counter-rule": ("SIGKILL of a worker", {GENERATION}),
    "old-item-rows": ("SIGKILL of a worker", {GENERATION}),
    # It freezes a leader by itself, where that matters. The check that looks first finds it: at the pointer,
    # or at the generation that answers after a refit, which is an older one.
    "no-fence": ("connections of the services delayed", {POINTER, NEXT}),
}


@pytest.mark.timeout(800)
@pytest.mark.parametrize("weakness", WEAKENED)
async def test_a_missing_protection_is_found(weakness: str, tmp_path: Path) -> None:
    fault, checks = WEAKENED[weakness]
    # It ends at the first finding; a busy machine publishes few generations in that time, and is tried twice.
    for seed in (1, 2):
        folder = tmp_path / str(seed)
        folder.mkdir()
        report: Report = await torture(150, seed, folder, os.environ, weakness=weakness, faults=[fault])
        if found := checks & {check for _, check, _ in report.violations}:
            break
    assert found, report.lines()
