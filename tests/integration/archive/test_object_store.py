"""What an archive promises of a folder holds on an object store: after a kill at any step, beside a leader
that comes late, after an erasure. And whether a store can be trusted, and what it answers in place of a file.
"""

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featurestore.errors import LeaseLost
from tests.support.event_tables import free
from tests.support.object_store import CREDENTIALS, Between, ObjectServer, everything
from tests.unit.trainer.test_trainer_archive import Crash, contents, crash_at, events
from trainer.archive.epoch_archive import EpochArchive, read_spans
from trainer.archive.erasures import put_ledger, readable_ledgers
from trainer.archive.root import ArchiveRoot
from trainer.archive.segments import Step, no_step
from trainer.archive.storage.address import ObjectAddress
from trainer.archive.storage.files import located, on_objects
from trainer.archive.unread import UnreadFiles
from trainer.errors import ArchiveFailedError, ArchiveRefusedError, ArchiveUnreachableError
from trainer.settings import TrainerSettings

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
    killed_at(address, step, lambda archive: archive.erase(b"user-1", 10**9))
    led(address).epoch(1).erase(b"user-1", 10**9)
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
    archive.erase(b"user-1", 10**9)
    archive.append(*events(91, 5, users=2))
    there = contents(archive)
    goes_on.set()
    thread.join()
    assert failed
    assert (old.taken_away, new.taken_away) == (True, False)
    assert contents(archive) == there
    archive.merge()
    # What the old one has left of its work goes with the next erasure.
    archive.erase(b"user-1", 10**9)
    assert found(address) == [ms for ms in there if ms < 91 or ms % 2 == 0]
    assert not has_bytes(address, b"user-1")


def test_trash_and_ledger_are_kept_and_lose_who_was_forgotten(address: ObjectAddress) -> None:
    filled(address)
    root = led(address)
    kept = root.trash.keep(list(root.epoch(1).snapshot().paths), 1, "f" * 32, "rebuilt")
    assert (kept.ratings, kept.users) == (90, 3)
    root.epoch(1).append(*events(91, 5))
    assert root.discard(1, "replaced") is not None
    assert root.epochs() == []
    again = led(address)
    entries = again.trash.entries()
    assert [entry.ratings for entry in entries] == [90, 95]
    again.erasures.add([(b"user-1", 1_000)])
    assert again.trash.erase(b"user-1") == 62
    assert not has_bytes(address, b"user-1")
    again.trash.remove(entries[0])
    assert [entry.path.name for entry in opened(address).trash.entries()] == [entries[1].path.name]
    # A restore beside the trainer puts a ledger there, too.
    (ledger,) = readable_ledgers(located(address, CREDENTIALS))
    put_ledger(located(address, CREDENTIALS), ledger.content)
    again.erasures.add([(b"dave", 4_000)])
    ledgers = readable_ledgers(located(address, CREDENTIALS))
    assert len(ledgers) == 2
    times = np.max([each.erased_at([b"user-1", b"dave", b"eve"]) for each in ledgers], axis=0)
    assert times.tolist() == [1_000, 4_000, 0]


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


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("InvalidAccessKeyId", "the key is not known there: see that AWS_ACCESS_KEY_ID"),
        ("AccessDenied", "it refuses this key"),
        ("NoSuchBucket", "there is no such bucket: make it"),
    ],
)
def test_what_a_person_must_change_is_one_line_without_keys(
    objects: ObjectServer, address: ObjectAddress, code: str, told: str
) -> None:
    with Between(objects) as between:
        between.refuse = code
        with pytest.raises(ArchiveFailedError, match=told) as refused:
            opened(between.before(address))
    text = str(refused.value)
    assert "\n" not in text
    assert "key-of-tests" not in text
    assert "secret-of-tests" not in text
    with pytest.raises(ArchiveUnreachableError, match="does not answer: see that it runs"):
        opened(replace(address, endpoint="http://127.0.0.1:1"))


def test_store_that_is_away_sets_nothing_aside(objects: ObjectServer, address: ObjectAddress) -> None:
    with Between(objects) as between:
        archive = filled(between.before(address))
        between.refuse = "InternalError"
        for work in (archive.merge, lambda: archive.append(*events(91, 10))):
            with pytest.raises(ArchiveFailedError):
                work()
        assert archive.damaged == []
        unread = UnreadFiles()
        with pytest.raises(ArchiveFailedError):
            read_spans(located(between.before(address), CREDENTIALS) / "epoch-000001", unread)
        assert unread.seconds() == {}
        between.refuse = None
        archive.append(*events(91, 10))
        assert archive.merge()
        assert contents(archive) == list(range(1, 101))


def test_what_was_told_to_have_failed_counts_once_or_does_not_come_back(
    objects: ObjectServer, address: ObjectAddress
) -> None:
    def is_commit(method: str, path: str) -> bool:
        return method == "PUT" and "/commits/" in path

    def nothing(_method: str, _path: str) -> bool:
        return False

    with Between(objects) as between:
        archive = filled(between.before(address))
        works: tuple[Callable[[EpochArchive], object], ...] = (
            EpochArchive.merge,
            lambda archive: archive.append(*events(91, 10)),
        )
        for work in works:
            between.mute = is_commit
            with pytest.raises(ArchiveFailedError):
                work(archive)
            between.mute = nothing
            archive.erase(b"user-1", 10**9)
            assert not has_bytes(address, b"user-1")
            assert found(address) == KEPT
            archive = led(between.before(address)).epoch(1)
        # As the consumer does it.
        between.mute = is_commit
        with pytest.raises(ArchiveFailedError):
            archive.append(*events(91, 10))
        between.mute = nothing
        archive.append(*events(91, 10))
        archive.append(*events(101, 10))
    assert found(address) == KEPT + list(range(91, 111))


def test_objects_without_commits_are_refused(address: ObjectAddress) -> None:
    filled(address)
    place = on_objects(located(address, CREDENTIALS))
    assert place is not None
    client = place.archive.client
    client.delete([each.name for each in client.listed("commits")])
    with pytest.raises(ArchiveRefusedError, match="has ratings and no commits/"):
        opened(address).claim("7.term")
    assert any(name.startswith("objects/") for name in everything(address))


def test_keys_come_from_variables_and_profiles_of_files(tmp_path: Path) -> None:
    profiles = tmp_path / "credentials"
    profiles.write_text(
        "[default]\naws_access_key_id = a\naws_secret_access_key = b\n[other]\n"
        "[third]\naws_access_key_id = c\naws_secret_access_key = d\naws_session_token = e\n"
    )
    by_file = {"FOLDIN_ARCHIVE_DIR": "s3://bucket/a", "AWS_SHARED_CREDENTIALS_FILE": str(profiles)}
    told = TrainerSettings.load((), by_file).credentials
    assert told.known("default") == {"access_key_id": "a", "secret_access_key": "b"}
    assert told.known("third")["session_token"] == "e"
    assert told.known("other") == told.known("none") == {}
    # The library reads the rest of that key itself.
    by_variable = TrainerSettings.load((), {**by_file, "AWS_ACCESS_KEY_ID": "key"}).credentials
    assert by_variable.known("default") == {}
