"""`foldin torture`, short: under faults, and with one protection taken out, which it must find."""

import os
import shutil
from pathlib import Path

import pytest

from tests.support.servers import missing
from torture.auditor import ARCHIVE, BACK, FILES, FORGOTTEN, GENERATION, NEXT, ORDER, POINTER, SAME
from torture.campaign import torture
from torture.checks import CLEAR, DELETED, DOCUMENT, HIDDEN, READ, TOLD
from torture.faults import names_of
from torture.stack import STORE_KINDS, StoreKind

pytestmark = [pytest.mark.slow, pytest.mark.fault, pytest.mark.timeout(1800)]
# By kind of store. A history of so many users that a process of its own publishes them takes minutes of a
# busy machine.
FAULTS = {
    "one": [name for name in names_of("one") if "publication" not in name],
    "replicas": [name for name in names_of("replicas") if "promotion" in name],
    "cluster": [name for name in names_of("cluster") if "promotion" in name or "slot" in name],
}
EACH = {ARCHIVE, BACK, CLEAR, DELETED, DOCUMENT, FORGOTTEN, GENERATION}
EACH |= {HIDDEN, NEXT, ORDER, POINTER, READ, SAME, TOLD}
# A busy machine is no defect: what hangs is found all the same.
PATIENCE = 5.0
WEAKENED = {
    "no-sync": ("power cut", {READ, ARCHIVE, POINTER}),
    "no-counter-rule": ("SIGKILL of a worker", {GENERATION}),
    "archived-twice": ("SIGKILL of the trainers at a new segment", {ARCHIVE}),
    "no-rewrite": ("SIGKILL of a worker", {FILES}),
}


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


@pytest.mark.parametrize("kind", STORE_KINDS)
async def test_nothing_is_lost_stale_mixed_or_remembered(kind: StoreKind, tmp_path: Path, seed: int) -> None:
    report = await torture(100, seed, tmp_path, os.environ, faults=FAULTS[kind], kind=kind, patience=PATIENCE)
    assert report.violations == [], report.lines()
    assert sum(report.faults.values()) >= 1, report.lines()
    assert set(report.checks) >= EACH, report.lines()
    # What could have more explanations than are tried shows nothing.
    assert all(2 * count <= report.checks[of] for of, count in report.unjudged.items()), report.lines()


@pytest.mark.parametrize("weakness", WEAKENED)
async def test_a_missing_protection_is_found(weakness: str, tmp_path: Path, seed: int) -> None:
    fault, checks = WEAKENED[weakness]
    # It ends at the first finding, long before that.
    report = await torture(600, seed, tmp_path, os.environ, weakness=weakness, faults=[fault])
    assert checks & {check for _, check, _ in report.violations}, report.lines()
