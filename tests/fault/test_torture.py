"""`foldin torture`, short: a whole stack under every fault, and stacks with one protection taken out, in
which the same auditor must find what goes wrong.
"""

import os
import shutil
from pathlib import Path

import pytest

from foldin.torture.auditor import ARCHIVE, BACK, GENERATION, NEXT, POINTER
from foldin.torture.campaign import torture
from foldin.torture.clients import ORDER, READ
from foldin.torture.faults import names_of
from foldin.torture.report import Report
from tests.support.servers import missing

pytestmark = [pytest.mark.fault, pytest.mark.timeout(400)]


@pytest.fixture(autouse=True)
def _compiler() -> None:
    if shutil.which("cc") is None:
        missing("a C compiler")


async def test_nothing_is_lost_stale_mixed_or_remembered_under_any_fault(tmp_path: Path) -> None:
    # A history of so many users that a process of its own publishes them takes minutes of a busy machine.
    faults = [name for name in names_of(replicated=False) if "publication" not in name]
    report = await torture(100, 1, tmp_path, os.environ, faults=faults)
    assert report.violations == [], report.lines()
    # How many there is time for hangs on the machine.
    assert sum(count > 0 for count in report.faults.values()) >= 4, report.lines()
    assert set(report.checks) >= {ARCHIVE, BACK, GENERATION, ORDER, POINTER, READ}, report.lines()
    # What could have more explanations than are tried shows nothing.
    assert report.unjudged[GENERATION] < report.checks[GENERATION] / 2, report.lines()


async def test_promotions_of_a_replica_lose_nothing(tmp_path: Path) -> None:
    faults = [name for name in names_of(replicated=True) if "promotion" in name]
    report = await torture(60, 3, tmp_path, os.environ, faults=faults, replicated=True)
    assert report.violations == [], report.lines()
    assert sum(report.faults.values()) >= 2, report.lines()
    assert set(report.checks) >= {ARCHIVE, BACK, ORDER, POINTER, READ}, report.lines()


WEAKENED = {
    "no-sync": ("power cut", {READ, ARCHIVE, POINTER}),
    "no-counter-rule": ("SIGKILL of a worker", {GENERATION}),
    "old-item-rows": ("SIGKILL of a worker", {GENERATION}),
    # It freezes a leader by itself, where that matters. The check that looks first finds it: at the pointer,
    # or at the generation that answers after a refit, which is an older one.
    "no-fence": ("connections of the services delayed", {POINTER, NEXT}),
}


@pytest.mark.parametrize("weakness", WEAKENED)
async def test_a_missing_protection_is_found(weakness: str, tmp_path: Path) -> None:
    fault, checks = WEAKENED[weakness]
    # It ends at the first finding; a busy machine publishes few generations in that time.
    report: Report = await torture(150, 1, tmp_path, os.environ, weakness=weakness, faults=[fault])
    assert checks & {check for _, check, _ in report.violations}, report.lines()
