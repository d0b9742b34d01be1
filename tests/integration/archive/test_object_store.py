"""What an archive promises of a folder holds on an object store: after a kill at any step, beside a leader
that comes late, after an erasure. And whether a store can be trusted, and what it answers in place of a file.
"""

import threading
from collections.abc import Callable
from typing import Any

import pytest

from featurestore.errors import LeaseLost
from tests.support.event_tables import free
from tests.support.object_store import CREDENTIALS, Between, ObjectServer, everything
from tests.unit.trainer.test_trainer_archive import Crash, contents, crash_at, events
from trainer.archive.epoch_archive import EpochArchive
from trainer.archive.events import ALWAYS
from trainer.archive.root import ArchiveRoot
from trainer.archive.segments import Step, no_step
from trainer.archive.storage.address import ObjectAddress
from trainer.archive.storage.files import located
from trainer.errors import ArchiveFailedError, ArchiveRefusedError

# Of all steps, which `tests/unit/trainer/test_trainer_archive.py` has for a folder, those round a commit.
STEPS = ("segment:synced", "segment:renamed", "replace:unlink")
TERMS = iter(range(1, 10_000))
KEPT = [ms for ms in range(1, 91) if ms % 3 != 1]


def opened(address: ObjectAddress) -> ArchiveRoot:
    """As a process that has just begun finds it."""
    return ArchiveRoot(located(address, CREDENTIALS), guard=free)


def led(address: ObjectAddress, step: Step = no_step) -> ArchiveRoot:
    """The archive in the hands of a trainer that has just begun to lead."""
    root = ArchiveRoot(located(address, CREDENTIALS), guard=free, step=step)
    assert root.take(root.claim(f"{next(TERMS)}.term"))
    return root


def filled(address: ObjectAddress) -> EpochArchive:
    """Nine segments of ten events each, of which a merge takes eight."""
    archive = led(address).epoch(1)
    for k in range(9):
        archive.append(*events(1 + 10 * k, 10))
    return archive


def found(address: ObjectAddress) -> list[int]:
    return contents(led(address).epoch(1))


def has_bytes(address: ObjectAddress, user_id: bytes) -> bool:
    return any(user_id in content for content in everything(address).values())


def killed_at(address: ObjectAddress, step: str, work: Callable[[EpochArchive], Any]) -> None:
    with pytest.raises(Crash):
        work(led(address, crash_at(step)).epoch(1))


@pytest.mark.parametrize("step", STEPS)
def test_merge_and_erasure_ended_at_any_step_are_whole_or_repeated(address: ObjectAddress, step: str) -> None:
    filled(address)
    killed_at(address, step, lambda archive: archive.merge())
    after = led(address).epoch(1)
    assert contents(after) == list(range(1, 91))
    while after.merge():
        pass
    killed_at(address, step, lambda archive: archive.erase({b"user-1": ALWAYS}))
    led(address).epoch(1).erase({b"user-1": ALWAYS})
    assert found(address) == KEPT
    assert not has_bytes(address, b"user-1")
    assert has_bytes(address, b"user-2")


@pytest.mark.parametrize("step", STEPS)
def test_leader_that_was_frozen_changes_nothing_once_another_one_leads(
    address: ObjectAddress, step: str
) -> None:
    filled(address)
    frozen, goes_on = threading.Event(), threading.Event()

    def stops(name: str) -> None:
        if name == step and not frozen.is_set():
            frozen.set()
            goes_on.wait()

    old, failed = led(address, stops), list[Exception]()

    def work() -> None:
        try:
            old.epoch(1).merge()
            old.epoch(1).append(*events(91, 10))
        except (ArchiveFailedError, LeaseLost) as exc:
            failed.append(exc)

    thread = threading.Thread(target=work)
    thread.start()
    frozen.wait()
    new = led(address)
    archive = new.epoch(1)
    archive.erase({b"user-1": ALWAYS})
    archive.append(*events(91, 5, users=2))
    there = contents(archive)
    goes_on.set()
    thread.join()
    assert failed
    assert (old.taken_away, new.taken_away) == (True, False)
    assert contents(archive) == there
    archive.merge()
    # What the old one has left of its work goes with the next erasure.
    archive.erase({b"user-1": ALWAYS})
    assert found(address) == [ms for ms in there if ms < 91 or ms % 2 == 0]
    assert not has_bytes(address, b"user-1")


def test_store_that_overwrites_is_refused(objects: ObjectServer, address: ObjectAddress) -> None:
    with Between(objects) as between:
        between.lies = True
        with pytest.raises(
            ArchiveRefusedError, match=r"does not honour create-only writes .*: use a version"
        ):
            opened(between.before(address))
        between.lies = False
        opened(between.before(address))
    assert everything(address) == {}
