"""Who holds a rating of an item from before a moment, as an archive says; and what has come since."""

from math import nan
from pathlib import Path

import msgspec
import numpy as np
import pytest

from featurestore.codecs import pack_entry
from featurestore.commands import Command
from featurestore.users.records import StoredUser
from tests.support.event_tables import event_table, free
from trainer.archive.epoch_archive import EpochArchive
from trainer.archive.events import spans_of
from trainer.item_deletion.item_ratings import _state, holders

# Ratings of the item `i1`, but for one, by user: when, the user's count, and the rating.
EVENTS = (
    ("before", 10, 1, 1, 3.0),
    ("twice", 10, 1, 1, 3.0),
    ("twice", 20, 2, 1, 4.0),
    ("back", 10, 1, 1, 3.0),
    ("back", 20, 2, 1, nan),
    ("again", 10, 1, 1, 3.0),
    ("again", 31, 2, 1, 3.0),
    ("since", 31, 1, 1, 3.0),
    ("other", 10, 1, 2, 3.0),
    ("busy", 30, 1, 1, 3.0),
    ("busy", 40, 2, 2, 3.0),
)
ENDS = msgspec.json.encode([(30, 0)])


def archived(folder: Path, segments: int) -> EpochArchive:
    archive = EpochArchive(folder / "epoch", 1, guard=free)
    for part in np.array_split(np.arange(len(EVENTS)), segments):
        users, ms, n, row, value = zip(
            *[EVENTS[k] for k in sorted(part, key=lambda k: EVENTS[k][1])], strict=True
        )
        table = event_table(users, n, row, value, stream_ms=ms)
        archive.append(table, spans_of(table))
    return archive


@pytest.mark.parametrize("segments", [1, 4])
def test_the_last_rating_before_the_call_counts(tmp_path: Path, segments: int) -> None:
    archive = archived(tmp_path, segments)
    asked = [Command("1-0", "a", "take_back", 1, None, 30, item, ENDS) for item in (b"i1", b"i2", b"i3")]
    found = holders(archive, asked)
    # With the count of all the user's events, of other items and after the call as well.
    assert found == [{b"before": 1, b"twice": 2, b"busy": 2}, {b"other": 1}, {}]


def test_without_any_event(tmp_path: Path) -> None:
    archive = EpochArchive(tmp_path / "epoch", 1, guard=free)
    assert holders(archive, [Command("1-0", "a", "take_back", 1, None, 30, b"i1", ENDS)]) == [{}]


@pytest.mark.parametrize(
    ("entries", "n", "seen", "state"),
    [
        ([(1, 3.0)], 1, 1, "held"),
        ([(1, 3.0), (2, 3.0)], 2, 1, "held"),
        ([(1, 3.0), (1, 3.0)], 2, 1, "later"),
        # Compacted since: where the one that was seen stands is not known for sure.
        ([(2, 3.0), (1, 3.0)], 7, 6, "later"),
        ([(2, 3.0), (1, 3.0)], 7, 7, "held"),
        ([(1, 3.0), (1, nan)], 2, 2, "gone"),
        ([(2, 3.0)], 5, 5, "gone"),
        ([], 0, 4, "gone"),
        # An event of another type of the same item.
        ([(1, 3.0), (1 | 1 << 27, 1.0)], 2, 1, "held"),
    ],
)
def test_what_a_history_says(entries: list[tuple[int, float]], n: int, seen: int, state: str) -> None:
    history = b"".join(pack_entry(row, value, 1e9) for row, value in entries)
    assert _state(StoredUser(b"u", 0, n, history), 1, seen) == state
