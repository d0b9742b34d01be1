"""What an archive promises of a folder holds on an object store: after a kill at any step, beside a leader
that comes late, after an erasure.
"""

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from featurestore.errors import LeaseLost
from tests.integration.archive.conftest import Place
from tests.support.event_tables import free
from tests.unit.trainer.test_trainer_archive import Crash, contents, crash_at, events
from trainer.archive.epoch_archive import EpochArchive
from trainer.archive.erasures import put_ledger, readable_ledgers
from trainer.archive.root import ArchiveRoot
from trainer.archive.segments import Step, no_step
from trainer.archive.storage.files import on_objects
from trainer.errors import ArchiveFailedError

# Of all steps, which `tests/unit/trainer/test_trainer_archive.py` has for a folder, those round a commit.
STEPS = ("segment:synced", "segment:renamed")
REPLACE_STEPS = (*STEPS, "replace:unlink")
TERMS = iter(range(1, 10_000))


def led(place: Place, step: Step = no_step) -> ArchiveRoot:
    """The archive in the hands of a trainer that has just begun to lead."""
    root = ArchiveRoot(place(), guard=free, step=step)
    assert root.take(root.claim(f"{next(TERMS)}.term"))
    return root


def filled(place: Place, segments: int = 9, rows: int = 10) -> None:
    archive = led(place).epoch(1)
    for k in range(segments):
        archive.append(*events(1 + k * rows, rows))


def everywhere(place: Place) -> bytes:
    """All bytes that there are in an archive."""
    found = place()
    if (on := on_objects(found)) is not None:
        client = on.archive.client
        return b"".join(client.read(each.name) for each in client.listed(""))
    return b"".join(path.read_bytes() for path in found.rglob("*") if path.is_file())


def killed_at(place: Place, step: str, work: Callable[[EpochArchive], Any], occurrence: int = 1) -> None:
    with pytest.raises(Crash):
        work(led(place, crash_at(step, occurrence)).epoch(1))


@pytest.mark.parametrize("step", REPLACE_STEPS)
def test_merge_and_erasure_ended_at_any_step_are_whole_or_repeated(place: Place, step: str) -> None:
    filled(place)
    killed_at(place, step, lambda archive: archive.merge())
    after = led(place).epoch(1)
    assert contents(after) == list(range(1, 91))
    while after.merge():
        pass
    killed_at(place, step, lambda archive: archive.erase(b"user-1", 10**9))
    last = led(place).epoch(1)
    last.erase(b"user-1", 10**9)
    assert contents(led(place).epoch(1)) == [ms for ms in range(1, 91) if ms % 3 != 1]
    assert b"user-1" not in everywhere(place)
    assert b"user-2" in everywhere(place)


@pytest.mark.parametrize("step", REPLACE_STEPS)
def test_leader_that_was_frozen_changes_nothing_once_another_one_leads(place: Place, step: str) -> None:
    filled(place)
    frozen, goes_on = threading.Event(), threading.Event()

    def stops(name: str) -> None:
        if name == step and not frozen.is_set():
            frozen.set()
            goes_on.wait(60)

    old, failed = led(place, stops), list[Exception]()

    def work() -> None:
        try:
            old.epoch(1).merge()
            old.epoch(1).append(*events(91, 10))
        except (ArchiveFailedError, LeaseLost) as exc:
            failed.append(exc)

    thread = threading.Thread(target=work)
    thread.start()
    assert frozen.wait(60)
    new = led(place)
    archive = new.epoch(1)
    archive.erase(b"user-1", 10**9)
    archive.append(*events(91, 5, users=2))
    there = contents(archive)
    goes_on.set()
    thread.join(60)
    assert failed
    assert old.taken_away
    assert not new.taken_away
    assert contents(archive) == there
    archive.merge()
    # What the old one has left of its work goes with the next erasure.
    archive.erase(b"user-1", 10**9)
    assert contents(led(place).epoch(1)) == [ms for ms in there if ms < 91 or ms % 2 == 0]
    assert b"user-1" not in everywhere(place)


def test_trash_keeps_what_was_replaced_and_loses_who_was_forgotten(place: Place) -> None:
    filled(place, segments=3)
    root = led(place)
    archive = root.epoch(1)
    kept = root.trash.keep(list(archive.snapshot().paths), 1, "f" * 32, "rebuilt")
    assert (kept.ratings, kept.users) == (30, 3)
    archive.append(*events(31, 5))
    moved = root.discard(1, "replaced")
    assert moved is not None
    assert root.epochs() == []
    assert [entry.ratings for entry in led(place).trash.entries()] == [30, 35]
    again = led(place)
    assert again.trash.erase(b"user-1") == 22
    assert b"user-1" not in everywhere(place)
    entries = again.trash.entries()
    again.trash.remove(entries[0])
    assert [entry.path.name for entry in led(place).trash.entries()] == [entries[1].path.name]
    again = led(place)
    again.trash.remove(again.trash.entries()[0])
    assert b"user-2" not in everywhere(place)


def test_ledger_has_what_the_leader_and_a_restore_beside_it_put_there(place: Place) -> None:
    root = led(place)
    root.erasures.add([(b"alice", 1_000)])
    root.erasures.add([(b"bob", 2_000)])
    other = led(place)
    other.erasures.add([(b"carol", 3_000)])
    (ledger,) = readable_ledgers(place())
    # As `foldin restore` does it, while the trainer has the archive.
    put_ledger(place(), ledger.content)
    other.erasures.add([(b"dave", 4_000)])
    ledgers = readable_ledgers(place())
    assert len(ledgers) == 2
    users = [b"alice", b"bob", b"carol", b"dave", b"eve"]
    times = np.max([each.erased_at(users) for each in ledgers], axis=0).tolist()
    assert times == [1_000, 2_000, 3_000, 4_000, 0]
    assert contents(led(place).epoch(1)) == []
