"""A leader that is frozen before any call into the file system, and wakes when another has the archive."""

import itertools
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import event_tables
from tests.support.event_tables import event_table, events_in, free
from trainer.archive.epoch_archive import EpochArchive
from trainer.archive.events import ALWAYS
from trainer.archive.item_list import write_items
from trainer.archive.root import ArchiveRoot
from trainer.archive.segments import Step, no_step

SEGMENTS = 9
# The calls of Python into the file system: an audit hook hears of each before it is made.
# It hears of none of Arrow's, which have a step before them.
CALLS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.listdir"}

Content = list[tuple[str, int, float]]


def append(archive: EpochArchive, ms: int) -> None:
    event_tables.append(archive, ["ann", "ben"], [ms, ms], [1, 2], [4.0, 2.0], stream_ms=[ms, ms])


def rebuild(archive: EpochArchive, root: ArchiveRoot) -> None:
    old = archive.begin_rebuild()
    root.trash.keep([segment.path for segment in old], 1, "a" * 32, "rebuilt")
    table = event_table(["ann"], [SEGMENTS], [1], [4.0], stream_ms=[0])
    archive.append(table, {})
    archive.finish_rebuild(old, archive.snapshot().spans)


WORK: dict[str, Callable[[ArchiveRoot, EpochArchive], object]] = {
    "append": lambda _, archive: append(archive, SEGMENTS + 1),
    "merge": lambda _, archive: archive.merge(),
    "erase": lambda _, archive: archive.erase({b"ann": ALWAYS}),
    "rebuild": lambda root, archive: rebuild(archive, root),
    "set aside": lambda _, archive: archive.set_aside(archive.snapshot().paths[3], "it is torn"),
    "items": lambda _, archive: write_items(archive.directory, [b"a", b"b"]),
    "identity": lambda root, _: root.belong_to("b" * 32),
    "ledger": lambda root, _: root.erasures.add([(b"dan", 1)]),
    "discard": lambda root, _: root.discard(1, "replaced"),
    "new epoch": lambda root, _: append(root.epoch(2), 1),
    "empty trash": lambda root, _: root.trash.remove(root.trash.entries()[0]),
    "erase from trash": lambda root, _: root.trash.erase({b"cem": ALWAYS}),
}


QUICK = ("append", "identity", "ledger", "erase from trash")


class Interrupted:
    def __init__(self) -> None:
        self._at: int | None = None
        self._then: Callable[[], None] = lambda: None
        self.happened = False
        # It cannot be taken out again.
        sys.addaudithook(self._hear)

    def run(self, work: Callable[[], object], at: int, then: Callable[[], None]) -> None:
        self._at, self._then, self.happened = at, then, False
        try:
            work()
        except Exception:
            # A leader that was replaced may fail in any way.
            if not self.happened:
                raise
        finally:
            self._at = None

    def _hear(self, event: str, _: object) -> None:
        if event in CALLS:
            self.step(event)

    def step(self, _name: str) -> None:
        if self._at is None:
            return
        self._at -= 1
        if self._at == 0:
            self._at, self.happened = None, True
            self._then()


@pytest.fixture(scope="module")
def interrupted() -> Interrupted:
    return Interrupted()


def taken(folder: Path, term: str, step: Step = no_step) -> ArchiveRoot:
    root = ArchiveRoot(folder, guard=free, step=step)
    root.take(root.claim(term))
    return root


def filled(folder: Path) -> None:
    root = taken(folder, "0.made")
    archive = root.epoch(1)
    for ms in range(1, SEGMENTS + 1):
        append(archive, ms)
    old = root.epoch(7)
    old.append(event_table(["cem", "ann"], [1, 1], [1, 2], [3.0, 1.0], stream_ms=[1, 2]), {})
    root.discard(7, "replaced")
    root.leave()


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def content(archive: EpochArchive) -> Content:
    return events_in(archive.snapshot().paths, "user_id", "n", "rating")


def frozen_everywhere(
    folder: Path, interrupted: Interrupted, work: Callable[[ArchiveRoot, EpochArchive], object]
) -> int:
    """Replace a leader before each call of its work, after which no byte changes; how many there are."""
    for at in itertools.count(1):
        place = folder / str(at) / "ns"
        filled(place)
        first = taken(place, "1.a", interrupted.step)
        before: dict[str, bytes] = {}
        read: Content = []
        second: list[ArchiveRoot] = []

        def take_over(place: Path = place, second: list[ArchiveRoot] = second) -> None:
            nonlocal before, read
            root = taken(place, "2.b")
            second.append(root)
            if 1 in root.epochs():
                read = content(root.epoch(1))
            before = files(place)

        archive = first.epoch(1)
        interrupted.run(lambda: work(first, archive), at, take_over)  # noqa: B023 - run at once
        if not second:
            return at - 1
        assert files(place) == before, f"changed after call {at}"
        if 1 in second[0].epochs():
            append(second[0].epoch(1), 100)
            assert content(second[0].epoch(1)) == [*read, ("ann", 100, 4.0), ("ben", 100, 2.0)]
    raise AssertionError


@pytest.mark.parametrize(
    "name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in WORK if name not in QUICK)]
)
def test_replaced_leader_changes_nothing(tmp_path: Path, interrupted: Interrupted, name: str) -> None:
    assert frozen_everywhere(tmp_path, interrupted, WORK[name]) >= 1


def test_later_claim_finds_the_earlier_one(tmp_path: Path) -> None:
    """Of two at once each has made its name before it looks for others."""
    folder = tmp_path / "ns"
    first, second = ArchiveRoot(folder, guard=free), ArchiveRoot(folder, guard=free)
    assert first.claim("1.a") == []
    others = second.claim("2.b")
    assert [path.name for path in others] == ["ns.term-1.a"]
    assert not first.taken_away
    second.take(others)
    assert (first.taken_away, second.taken_away) == (True, False)
    # A late leader that wakes before its claim finds the present one, and the store tells it to stop.
    assert [path.name for path in first.claim("1.a")] == ["ns.term-2.b"]
    first.leave()
    first.leave()
    assert not second.taken_away
    second.leave()
    assert [path.name for path in tmp_path.iterdir()] == ["ns"]
