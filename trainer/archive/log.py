"""The archive: every rating event of an epoch once, in a log of segments that only grows at its end.

Invariant: what `open_epoch` finds after a kill at any step is a state before or after one whole operation.
Segments are numbered without holes; a file that stands for several numbers (a merge) or for a later revision
(an erasure) makes the files that it covers superfluous from the moment of its rename, and those are removed
afterwards.
"""

import fcntl
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.compute as pc

from trainer.archive.events import (
    SCHEMA,
    START,
    Position,
    Span,
    Spans,
    join_spans,
    string_array,
    without_user,
)
from trainer.archive.segments import (
    DAMAGED,
    TEMPORARY,
    Segment,
    SegmentName,
    Step,
    inspect_segment,
    no_step,
    read_segment,
    sync_directory,
    write_segment,
)
from trainer.errors import ArchiveBusyError, ArchiveFailedError, SegmentDamagedError

# Eight neighbours of one size become one: a log of n segments of equal size is written some log8(n) times.
MERGE_FANOUT = 8
SMALLEST_TIER_ROWS = 1_000
# A merged segment is read whole into memory, some 80 bytes a row.
MERGED_ROWS = 2_000_000

Guard = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The segments of an epoch at one moment: their files in the order of the log, and what they cover."""

    epoch: int
    paths: tuple[Path, ...]
    spans: Spans
    rows: int

    @property
    def positions(self) -> dict[int, Position]:
        """Last archived stream id of each partition."""
        return {partition: span.last for partition, span in self.spans.items()}


class Archive:
    """The archive folder of one namespace, held by this process alone on this host.

    Raises `ArchiveBusyError` where another process holds it, `ArchiveFailedError` where it cannot be written.
    `guard` is asked right before anything is committed, and raises when this process is no longer allowed to.
    """

    def __init__(self, root: Path, *, guard: Guard, step: Step = no_step) -> None:
        self.root = root
        self._guard = guard
        self._step = step
        try:
            root.mkdir(parents=True, exist_ok=True)
            self._lock = _hold(root / "lock")
            probe = root / f"probe{TEMPORARY}"
            probe.write_bytes(b"\0" * 4096)
            probe.unlink()
        except OSError as exc:
            raise ArchiveFailedError(f"cannot write {root}: {exc.strerror or exc}") from exc
        self._epochs: dict[int, EpochArchive] = {}

    def epochs(self) -> list[int]:
        """Numbers of the epochs that have a folder, in order."""
        names = (path.name.removeprefix("epoch-") for path in self.root.glob("epoch-*") if path.is_dir())
        return sorted(int(name) for name in names if name.isdigit())

    def epoch(self, number: int) -> "EpochArchive":
        """The archive of one epoch, opened (and made) on first use. Slow the first time: call it in a
        thread.
        """
        if number not in self._epochs:
            self._epochs[number] = EpochArchive(
                self.folder(number), number, guard=self._guard, step=self._step
            )
        return self._epochs[number]

    def forget_opened(self) -> None:
        """Open epochs anew: what is on disk counts, whatever was cut off when they were open."""
        self._epochs.clear()

    def folder(self, number: int) -> Path:
        """Where an epoch is kept."""
        return self.root / f"epoch-{number:06d}"

    def remove_epoch(self, number: int) -> None:
        """Remove all of an epoch. The folder is renamed first, so that a killed removal is finished later."""
        self._epochs.pop(number, None)
        folder = self.folder(number)
        try:
            self._guard()
            if folder.exists():
                folder.rename(folder.with_name(folder.name + ".removed"))
            for removed in self.root.glob("epoch-*.removed"):
                shutil.rmtree(removed)
            sync_directory(self.root)
        except OSError as exc:
            raise ArchiveFailedError(f"cannot remove {folder}: {exc.strerror or exc}") from exc

    def close(self) -> None:
        """Let another process have it."""
        self._lock.close()


class EpochArchive:
    """The log of one epoch. Appends come from one task; merges and erasures may run beside them in other
    threads.
    """

    def __init__(self, directory: Path, epoch: int, *, guard: Guard, step: Step = no_step) -> None:
        self.directory = directory
        self.epoch = epoch
        self._guard = guard
        self._step = step
        self._state = threading.Lock()
        # Held by whatever replaces segments, so that an erasure never misses rows that a merge just moved.
        self._maintenance = threading.Lock()
        self._appending = threading.Lock()
        self._segments: list[Segment] = []
        self.damaged: list[SegmentDamagedError] = []
        self.rebuilding = False
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._recover()
        except OSError as exc:
            raise ArchiveFailedError(f"cannot open {directory}: {exc.strerror or exc}") from exc

    def snapshot(self) -> Snapshot:
        """What is archived now."""
        with self._state:
            segments = list(self._segments)
        spans = join_spans(segment.spans for segment in segments)
        rows = sum(segment.rows for segment in segments)
        return Snapshot(self.epoch, tuple(segment.path for segment in segments), spans, rows)

    def position(self, partition: int) -> Position:
        """Last archived stream id of a partition."""
        with self._state:
            return max(
                (s.spans[partition].last for s in self._segments if partition in s.spans), default=START
            )

    def has_holes(self) -> bool:
        """Whether segments are missing between others."""
        with self._state:
            names = [segment.name for segment in self._segments]
        expected = 1
        for name in names:
            if name.first != expected:
                return True
            expected = name.last + 1
        return False

    def append(self, table: pa.Table, spans: Spans) -> Segment:
        """Add events that follow the archived ones. When it returns they are on disk.

        Raises `ArchiveFailedError` (nothing was added) or what the guard raises.
        """
        with self._appending:
            with self._state:
                number = self._segments[-1].name.last + 1 if self._segments else 1
            name = SegmentName(number, number)
            segment = write_segment(self.directory, name, table, spans, step=self._step, guard=self._guard)
            with self._state:
                self._segments.append(segment)
        return segment

    def merge(self) -> bool:
        """Merge one run of neighbours where there is one; True if it did. Sets damaged segments aside."""
        with self._maintenance:
            with self._state:
                segments = list(self._segments)
            run = choose_merge([segment.rows for segment in segments])
            if run is None or self.rebuilding:
                return False
            merged = segments[run]
            tables = []
            for segment in merged:
                try:
                    tables.append(read_segment(segment.path)[0])
                except SegmentDamagedError as exc:
                    self._set_aside(segment, exc)
                    return False
            spans = join_spans(segment.spans for segment in merged)
            name = SegmentName(merged[0].name.first, merged[-1].name.last)
            self._replace(merged, name, pa.concat_tables(tables), spans)
            return True

    def erase(self, user_id: bytes, up_to_n: int) -> int:
        """Take a user's events up to `up_to_n` out of every segment; how many there were. Repeating is safe.

        Damaged files that were set aside cannot be searched, so they are removed.
        """
        wanted = string_array([user_id])[0]
        erased = 0
        with self._maintenance:
            with self._state:
                segments = list(self._segments)
            for segment in segments:
                try:
                    table, spans = read_segment(segment.path)
                except SegmentDamagedError as exc:
                    self._set_aside(segment, exc)
                    continue
                if not pc.any(pc.equal(table["user_id"], wanted)).as_py():
                    continue
                kept = without_user(table, user_id, up_to_n)
                if kept.num_rows == table.num_rows:
                    continue
                erased += table.num_rows - kept.num_rows
                name = SegmentName(segment.name.first, segment.name.last, segment.name.revision + 1)
                self._replace([segment], name, kept, spans)
            for path in self.directory.glob(f"*{DAMAGED}"):
                path.unlink()
        return erased

    def begin_rebuild(self) -> "Rebuild":
        """Start to replace the whole archive of this epoch; what is there stays until `Rebuild.commit`."""
        return Rebuild(self)

    def set_aside(self, path: Path, why: str) -> None:
        """Take a segment that a reader found damaged out of the log; its file stays for a person to look
        at.
        """
        with self._maintenance:
            with self._state:
                found = [segment for segment in self._segments if segment.path == path]
            for segment in found:
                self._set_aside(segment, SegmentDamagedError(path, why))

    def verify(self) -> list[SegmentDamagedError]:
        """Read everything; set aside what is damaged. Returns all that is known to be damaged."""
        for path in self.snapshot().paths:
            with self._maintenance:
                with self._state:
                    found = [segment for segment in self._segments if segment.path == path]
                for segment in found:
                    try:
                        read_segment(segment.path)
                    except SegmentDamagedError as exc:
                        self._set_aside(segment, exc)
        return list(self.damaged)

    def _replace(self, old: Sequence[Segment], name: SegmentName, table: pa.Table, spans: Spans) -> None:
        new = write_segment(self.directory, name, table, spans, step=self._step, guard=self._guard)
        with self._state:
            position = self._segments.index(old[0]) if old else 0
            self._segments[position : position + len(old)] = [new]
        for segment in old:
            self._step("replace:unlink")
            segment.path.unlink(missing_ok=True)
        self._step("replace:unlinked")
        sync_directory(self.directory)

    def _set_aside(self, segment: Segment, damage: SegmentDamagedError) -> None:
        with self._state:
            self._segments.remove(segment)
            self.damaged.append(damage)
        if segment.path.exists():
            segment.path.rename(segment.path.with_name(segment.path.name + DAMAGED))

    def _recover(self) -> None:
        """Finish what a kill left half done, then list the segments."""
        for leftover in self.directory.glob(f"*{TEMPORARY}"):
            leftover.unlink()
        named = [(SegmentName.parse(path.name), path) for path in self.directory.iterdir()]
        files = sorted((name, path) for name, path in named if name is not None)
        for name, path in files:
            if any(other.covers(name) for other, _ in files):
                self._step("recover:unlink")
                path.unlink()
                continue
            try:
                self._segments.append(inspect_segment(path, name))
            except SegmentDamagedError as exc:
                self.damaged.append(exc)
                path.rename(path.with_name(path.name + DAMAGED))
        sync_directory(self.directory)


class Rebuild:
    """A new content for an epoch, in parts of bounded size, that takes the place of the old one in one
    commit.

    Parts are segments that cover nothing of the streams, so an archive with parts of an unfinished rebuild
    counts as incomplete as it did before, and the next rebuild covers them.
    """

    def __init__(self, archive: EpochArchive) -> None:
        self._archive = archive
        archive.rebuilding = True
        with archive._state:
            self._old = list(archive._segments)
        self._parts: list[Segment] = []

    def add(self, table: pa.Table) -> None:
        """Write one part. Raises as `EpochArchive.append`."""
        self._parts.append(self._archive.append(table, {}))

    def commit(self, spans: Spans) -> None:
        """Make the parts, which cover `spans`, the whole archive."""
        archive = self._archive
        with archive._maintenance:
            if self._old:
                revision = max(segment.name.revision for segment in self._old) + 1
                name = SegmentName(1, self._old[-1].name.last, revision)
                archive._replace(self._old, name, SCHEMA.empty_table(), spans)
            archive.damaged.clear()
        if not self._old:
            archive.append(SCHEMA.empty_table(), spans)
        archive.rebuilding = False


def choose_merge(rows: Sequence[int]) -> slice | None:
    """Which neighbours to merge, given the rows of each segment in order; None where there are few enough.

    The smallest size first: `MERGE_FANOUT` neighbours that are all of a tier or below it, cut where together
    they would hold more than `MERGED_ROWS`.
    """
    tiers = [_tier(count) for count in rows]
    final = _tier(MERGED_ROWS // 2)
    for tier in range(final):
        for start, stop in _runs(tiers, tier):
            run = _fitting(rows, start, stop)
            if run is not None and stop - start >= MERGE_FANOUT:
                return run
    return None


def _tier(rows: int) -> int:
    tier = 0
    while rows > SMALLEST_TIER_ROWS * MERGE_FANOUT**tier:
        tier += 1
    return tier


def _runs(tiers: Sequence[int], tier: int) -> Iterable[tuple[int, int]]:
    start = 0
    for position in range(len(tiers) + 1):
        if position == len(tiers) or tiers[position] > tier:
            if position > start:
                yield start, position
            start = position + 1


def _fitting(rows: Sequence[int], start: int, stop: int) -> slice | None:
    total, end = 0, start
    while end < stop and total + rows[end] <= MERGED_ROWS:
        total += rows[end]
        end += 1
    return slice(start, end) if end - start >= 2 else None


def _hold(path: Path) -> BinaryIO:
    """Lock `path` for as long as the returned file is open. The kernel lets go when the process ends, however
    it ends.
    """
    file = path.open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as exc:
        file.close()
        raise ArchiveBusyError(f"{path.parent} is in use by another process") from exc
    os.set_inheritable(file.fileno(), False)
    return file


__all__ = ["SCHEMA", "Archive", "EpochArchive", "Position", "Snapshot", "Span", "choose_merge"]
