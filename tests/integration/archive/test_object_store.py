"""What an archive promises of a folder holds on an object store, and a store that cannot is refused."""

import threading

import pytest

from featurestore.errors import LeaseLost
from tests.support.event_tables import free
from tests.support.object_store import CREDENTIALS, Between, ObjectServer, everything
from tests.unit.trainer.test_trainer_archive import contents, events
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
    return ArchiveRoot(located(address, CREDENTIALS), guard=free)


def led(address: ObjectAddress, step: Step = no_step) -> ArchiveRoot:
    root = ArchiveRoot(located(address, CREDENTIALS), guard=free, step=step)
    assert root.take(root.claim(f"{next(TERMS)}.term"))
    return root


def has_bytes(address: ObjectAddress, user_id: bytes) -> bool:
    return any(user_id in content for content in everything(address).values())


@pytest.mark.parametrize("erases", [False, True], ids=["merge", "erasure"])
@pytest.mark.parametrize("step", STEPS)
def test_leader_that_stops_at_any_step_leaves_all_and_changes_nothing_once_another_one_leads(
    address: ObjectAddress, step: str, erases: bool
) -> None:
    filled = led(address).epoch(1)
    # Of nine segments a merge takes eight.
    for k in range(9):
        filled.append(*events(1 + 10 * k, 10))
    frozen, goes_on = threading.Event(), threading.Event()

    def stops(name: str) -> None:
        if name == step and not frozen.is_set():
            frozen.set()
            goes_on.wait()

    old, failed = led(address, stops), list[Exception]()

    def work() -> None:
        try:
            if erases:
                old.epoch(1).erase({b"user-1": ALWAYS})
            else:
                old.epoch(1).merge()
            old.epoch(1).append(*events(91, 10))
        except (ArchiveFailedError, LeaseLost) as exc:
            failed.append(exc)

    thread = threading.Thread(target=work)
    thread.start()
    frozen.wait()
    new = led(address)
    archive = new.epoch(1)
    # As after a kill: each event is there once, but for those that are to go.
    began = contents(archive)
    assert began == (sorted({*KEPT, *began}) if erases else list(range(1, 91)))
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
    assert contents(led(address).epoch(1)) == [ms for ms in there if ms < 91 or ms % 2 == 0]
    assert not has_bytes(address, b"user-1")
    assert has_bytes(address, b"user-2")


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
