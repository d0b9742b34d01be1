"""Whether an archive is the store's: case by case, from values; and the file that says so."""

from collections.abc import Mapping
from dataclasses import replace

import pytest

from featurestore.ratings.stream import Progress
from trainer.archive.events import Position
from trainer.archive.identity import UNREADABLE, ArchiveState, StoreState, StreamState, compare

OURS, OTHER = "a" * 32, "b" * 32
# 300 events, the last of them archived at this millisecond.
END: Position = (5_000, 300)


def archive(
    end: Position = END, *, identity: str | None = OURS, epoch: int = 1, partition: int = 0
) -> ArchiveState:
    return ArchiveState(identity, {epoch: {partition: end}})


def store(
    last: Position = END,
    done: int = 300,
    found: Position | None = None,
    *,
    identity: str = OURS,
    last_epoch: int = 1,
    epoch: int = 1,
) -> StoreState:
    streams: Mapping[int, Mapping[int, StreamState]] = {epoch: {0: StreamState(Progress(last, done), found)}}
    return StoreState(identity, last_epoch, streams)


def emptied(identity: str = OURS) -> StoreState:
    return StoreState(identity, 1, {1: {}})


@pytest.mark.parametrize(
    ("name", "archived", "stored"),
    [
        ("level", archive(), store()),
        ("events wait", archive(), store((6_000, 400), found=(6_000, 320))),
        ("behind: another trainer led", archive((4_000, 200)), store(done=300)),
        ("nothing archived, new store", ArchiveState(OURS, {1: {}}), emptied()),
        ("new folder", ArchiveState(None, {}), store()),
        ("replaced epoch on its way to the trash", archive(), store(epoch=2, last_epoch=2)),
        ("without an identity", archive(identity=None), store((6_000, 310), 300)),
        ("moved to fewer partitions", archive(partition=4), replace(store(), partitions=4)),
    ],
)
def test_archive_of_the_store(name: str, archived: ArchiveState, stored: StoreState) -> None:
    assert compare(archived, stored) is None, name


@pytest.mark.parametrize(
    ("archived", "stored", "why"),
    [
        (archive(identity=UNREADABLE), store(), "another store"),
        (archive(), store(identity=OTHER), "another store"),
        (archive(epoch=3), store(last_epoch=2), "epoch 3, and the store has begun no more than 2"),
        (archive(), emptied(), "goes on to event 300, the store ends at 0"),
        (archive(), store((4_900, 290), 290), "goes on to event 300, the store ends at 290"),
        # It lost its tail and gave the same numbers again, later.
        (archive(), store((7_000, 300), 290), "event 300 of the archive"),
        (archive(), store((7_000, 310), 290, found=(6_000, 305)), "event 300 of the archive"),
        (archive(identity=None), store(done=900, last=(9_000, 900)), "has archived 900 events elsewhere"),
        (archive(identity=None, epoch=2), store(epoch=4, last_epoch=4), "uses none of its epochs"),
    ],
)
def test_archive_of_another_store_says_why(archived: ArchiveState, stored: StoreState, why: str) -> None:
    found = compare(archived, stored)
    assert found is not None
    assert why in found
    assert "\n" not in found
