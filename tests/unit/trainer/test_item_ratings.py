"""Who holds a rating of an item from before a moment, as an archive says; and what has come since."""

import subprocess
import sys
from math import nan
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
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

# Prints how many users hold a rating of `i1`, the highest count of any, and the most bytes that Arrow had.
MEASURE = """
import sys
from pathlib import Path
import pyarrow as pa
from featurestore.commands import Command
from trainer.archive.epoch_archive import EpochArchive
from trainer.item_deletion.item_ratings import holders

# How much is in memory at once must not depend on which threads run when.
pa.set_cpu_count(1)
pa.set_io_thread_count(1)
archive = EpochArchive(Path(sys.argv[1]), 1, guard=lambda: None)
(found,) = holders(archive, [Command("1-0", "a", "take_back", 1, None, 30, b"i1", b"[[1000000000,0]]")])
print(len(found), max(found["n"].to_pylist()), pa.default_memory_pool().max_memory())
"""


def archived(folder: Path, segments: int) -> EpochArchive:
    archive = EpochArchive(folder / "epoch", 1, guard=free)
    for part in np.array_split(np.arange(len(EVENTS)), segments):
        users, ms, n, row, value = zip(
            *[EVENTS[k] for k in sorted(part, key=lambda k: EVENTS[k][1])], strict=True
        )
        table = event_table(users, n, row, value, stream_ms=ms)
        archive.append(table, spans_of(table))
    return archive


def counts(users: pa.Table) -> dict[bytes, int]:
    ids = users["user_id"].cast(pa.binary()).to_pylist()
    return dict(zip(ids, users["n"].to_pylist(), strict=True))


@pytest.mark.parametrize("segments", [1, 4])
def test_the_last_rating_before_the_call_counts(tmp_path: Path, segments: int) -> None:
    archive = archived(tmp_path, segments)
    asked = [Command("1-0", "a", "take_back", 1, None, 30, item, ENDS) for item in (b"i1", b"i2", b"i3")]
    found = [counts(users) for users in holders(archive, asked)]
    # With the count of all the user's events, of other items and after the call as well.
    assert found == [{b"before": 1, b"twice": 2, b"busy": 2}, {b"other": 1}, {}]


def test_without_any_event(tmp_path: Path) -> None:
    archive = EpochArchive(tmp_path / "epoch", 1, guard=free)
    (users,) = holders(archive, [Command("1-0", "a", "take_back", 1, None, 30, b"i1", ENDS)])
    assert counts(users) == {}


def test_memory_grows_with_who_rated_and_not_with_how_often(tmp_path: Path) -> None:
    """All users rate the item, and many others, in each segment."""
    few, many = (peak_bytes(tmp_path / str(segments), segments) for segments in (2, 16))
    assert 0 < many < 1.25 * few


def peak_bytes(folder: Path, segments: int) -> int:
    folder.mkdir()
    archive, users, rows = EpochArchive(folder / "epoch", 1, guard=free), 200, 50
    for part in range(segments):
        item = np.tile(np.arange(rows), users)
        n = part * rows + 1 + item
        ids = [f"user-{user}" for user in np.repeat(np.arange(users), rows)]
        table = event_table(ids, n, item, np.full(len(n), 3.0), stream_ms=np.arange(len(n)) + part * len(n))
        archive.append(table, spans_of(table))
    # A process that does nothing else tells the peak.
    told = subprocess.run(
        [sys.executable, "-c", MEASURE, str(archive.directory)],
        check=True,
        stdout=subprocess.PIPE,
        timeout=60,
    )
    users_found, highest, peak = map(int, told.stdout.split())
    assert (users_found, highest) == (users, segments * rows)
    return peak


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
