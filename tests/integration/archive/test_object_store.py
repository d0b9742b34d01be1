"""What is of an object store alone: whether it can be trusted, what it answers in place of a file, and which
objects there are.
"""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from foldin.commands.doctor.store import bucket
from tests.integration.archive.test_archive_places import led
from tests.support.event_tables import free
from tests.support.object_store import CREDENTIALS, Between, ObjectServer, everything
from tests.unit.trainer.test_trainer_archive import contents, events
from trainer.archive.epoch_archive import EpochArchive, read_spans
from trainer.archive.root import ArchiveRoot
from trainer.archive.segments import open_segment, read_segment
from trainer.archive.storage.address import ObjectAddress, ObjectCredentials
from trainer.archive.storage.client import ObjectClient, ObjectStoreError
from trainer.archive.storage.files import files_of, located, on_objects
from trainer.archive.storage.object_archive import ObjectArchive
from trainer.archive.unread import UnreadFiles
from trainer.errors import ArchiveFailedError, ArchiveRefusedError, ArchiveUnreachableError, SegmentGoneError
from trainer.settings import TrainerSettings


def opened(address: ObjectAddress, credentials: ObjectCredentials = CREDENTIALS) -> ArchiveRoot:
    return ArchiveRoot(located(address, credentials), guard=free)


def archive_of(root: ArchiveRoot) -> ObjectArchive:
    place = on_objects(root.root)
    assert place is not None
    return place.archive


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


@pytest.mark.parametrize(
    ("status", "code", "told"),
    [
        (503, "SlowDown", "it asks to be asked less often: it goes on by itself"),
        (301, "PermanentRedirect", "the bucket is in another region: name it by region="),
        (500, "InternalError", "answers InternalError: it is tried again"),
    ],
)
def test_store_that_answers_is_not_said_to_be_away(
    objects: ObjectServer, address: ObjectAddress, status: int, code: str, told: str
) -> None:
    with Between(objects) as between:
        between.status, between.refuse = status, code
        with pytest.raises(ObjectStoreError, match=told) as refused:
            ObjectClient(between.before(address), CREDENTIALS).listed("")
    assert refused.value.lasting is (status == 301)
    assert "of-tests" not in str(refused.value)


def test_bucket_that_is_not_there_and_store_that_does_not_answer(address: ObjectAddress) -> None:
    with pytest.raises(ArchiveFailedError, match="no such bucket"):
        opened(replace(address, bucket="another"))
    with pytest.raises(ArchiveUnreachableError, match="does not answer: see that it runs"):
        opened(replace(address, endpoint="http://127.0.0.1:1"))


def test_store_that_is_away_sets_nothing_aside(objects: ObjectServer, address: ObjectAddress) -> None:
    with Between(objects) as between:
        root = led(lambda: located(between.before(address), CREDENTIALS))
        archive = root.epoch(1)
        append_nine(archive)
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


def led_through(between: Between, address: ObjectAddress) -> EpochArchive:
    return led(lambda: located(between.before(address), CREDENTIALS)).epoch(1)


def append_nine(archive: EpochArchive) -> None:
    """Segments of ten events each, of which a merge takes eight."""
    for k in range(9):
        archive.append(*events(1 + 10 * k, 10))


def is_commit(method: str, path: str) -> bool:
    return method == "PUT" and "/commits/" in path


def nothing(_method: str, _path: str) -> bool:
    return False


def has_bytes(address: ObjectAddress, user_id: bytes) -> bool:
    return any(user_id in content for content in everything(address).values())


def test_what_was_told_to_have_failed_does_not_come_back(
    objects: ObjectServer, address: ObjectAddress
) -> None:
    with Between(objects) as between:
        archive = led_through(between, address)
        append_nine(archive)
        between.mute = is_commit
        with pytest.raises(ArchiveFailedError):
            archive.merge()
        between.mute = nothing
        archive.erase(b"user-1", 10**9)
        assert not has_bytes(address, b"user-1")
        kept = [ms for ms in range(1, 91) if ms % 3 != 1]
        assert contents(led(lambda: located(address, CREDENTIALS)).epoch(1)) == kept
        # Of an archive that has nothing of the user, so that the erasure itself commits nothing.
        archive = led_through(between, address)
        between.mute = is_commit
        with pytest.raises(ArchiveFailedError):
            archive.append(*events(91, 10))
        between.mute = nothing
        archive.erase(b"user-1", 10**9)
        assert not has_bytes(address, b"user-1")
        assert contents(led(lambda: located(address, CREDENTIALS)).epoch(1)) == kept
        archive = led_through(between, address)
        archive.append(*events(91, 10))
        # What was renamed is there still as the caller knows it.
        between.mute = is_commit
        before = archive.directory.with_name("epoch-000002")
        with pytest.raises(OSError, match="does not answer"):
            archive.directory.rename(before)
        between.mute = nothing
        archive.directory.rename(before)
    again = led(lambda: located(address, CREDENTIALS))
    assert again.epochs() == [2]
    assert contents(again.epoch(2)) == kept + list(range(91, 101))


def test_object_that_is_gone_is_told_from_one_that_cannot_be_read(
    address: ObjectAddress, tmp_path: Path
) -> None:
    root = led(lambda: located(address, CREDENTIALS))
    for k in range(2):
        root.epoch(1).append(*events(1 + 10 * k, 10))
    reader = located(address, CREDENTIALS) / "epoch-000001"
    first, second = reader.glob("*.parquet")
    opened_before = [open_segment(first)]
    archive_of(root).client.delete(
        [file.key for path, file in archive_of(root).files().items() if first.name in path]
    )
    with pytest.raises(SegmentGoneError):
        read_segment(first)
    with pytest.raises(FileNotFoundError):
        files_of(reader).with_descriptors(opened_before, tmp_path)
    (copy,) = files_of(reader).with_descriptors([open_segment(second)], tmp_path)
    assert os.pread(copy.fileno(), 4, 0) == b"PAR1"
    copy.close()
    assert list(tmp_path.iterdir()) == []
    # A person has removed it: as in a folder, the archive is made anew from the store.
    again = led(lambda: located(address, CREDENTIALS)).epoch(1)
    assert [str(each) for each in again.damaged] == [f"{first.name}: is missing"]
    assert again.has_holes()
    again.erase(b"user-1", 10**9)
    assert contents(again) == [ms for ms in range(11, 21) if ms % 3 != 1]


def test_objects_without_commits_are_refused(address: ObjectAddress) -> None:
    root = led(lambda: located(address, CREDENTIALS))
    root.epoch(1).append(*events(1, 10))
    client = archive_of(root).client
    client.delete([each.name for each in client.listed("commits")])
    with pytest.raises(ArchiveRefusedError, match="has ratings and no commits/"):
        opened(address).claim("7.term")
    assert any(name.startswith("objects/") for name in everything(address))


def test_bucket_that_keeps_versions_is_told(
    objects: ObjectServer, address: ObjectAddress, caplog: pytest.LogCaptureFixture
) -> None:
    opened(address)
    assert "archive_bucket_versioned" not in caplog.text
    versioned = objects.versioned()
    opened(versioned)
    assert "archive_bucket_versioned" in caplog.text
    (kept,) = bucket(located(versioned, CREDENTIALS))
    assert (kept.status, kept.advice.startswith("suspend the versions")) == ("warn", True)


def test_keys_come_from_variables_and_profiles_of_files(tmp_path: Path) -> None:
    place = {"FOLDIN_ARCHIVE_DIR": "s3://bucket/a"}
    profiles = tmp_path / "credentials"
    profiles.write_text(
        "[default]\naws_access_key_id = a\naws_secret_access_key = b\n[other]\n"
        "[third]\naws_access_key_id = c\naws_secret_access_key = d\naws_session_token = e\n"
    )
    by_file = {**place, "AWS_SHARED_CREDENTIALS_FILE": str(profiles)}
    told = TrainerSettings.load((), by_file).credentials
    assert told.known("default") == {"access_key_id": "a", "secret_access_key": "b"}
    assert told.known("third")["session_token"] == "e"
    assert told.known("other") == told.known("none") == {}
    # The library reads the rest of that key itself.
    assert (
        TrainerSettings.load((), {**by_file, "AWS_ACCESS_KEY_ID": "key"}).credentials.known("default") == {}
    )
