"""The archive of one epoch: every rating event once, in a log of segments that only grows at its end.

Invariant: what is found after a kill at any step is a state before or after one whole operation. Segments
are numbered without holes; a file that stands for several numbers (a merge) or for a later revision (an
erasure) makes the files that it covers superfluous from the moment of its rename, and those are removed
afterwards.
"""

import contextlib
import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from featurestore.keys import digest_of
from trainer.archive.events import SCHEMA, Position, Span, Spans, join_spans, string_array, without_user
from trainer.archive.merging import choose_merge
from trainer.archive.segments import (
    DAMAGED,
    TEMPORARY,
    Guard,
    Segment,
    SegmentName,
    Step,
    inspect_segment,
    no_step,
    open_segment,
    read_segment,
    sync_directory,
    write_segment,
)
from trainer.errors import ArchiveFailedError, SegmentDamagedError, SegmentGoneError

# No user has rated so often: an erasure up to this `n` takes all that there is of a user.
ALL_OF_A_USER = 2**62

# A trainer that was replaced a moment ago may merge, or move the epoch, while it is listed.
_LISTINGS = 10

Keep = Callable[[Sequence[Path]], object]
"""Called with files that are about to be removed."""


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

    @property
    def events(self) -> int:
        """How many events of the streams are archived. After an erasure or a rebuild there are fewer rows."""
        return sum(span.events for span in self.spans.values())


class EpochArchive:
    """The log of one epoch. Appends come from one task; merges and erasures may run beside them in other
    threads.
    """

    def __init__(self, directory: Path, epoch: int, *, guard: Guard, step: Step = no_step) -> None:
        self.directory = directory
        self.epoch = epoch
        self._guard = guard
        self._step = step
        # Held for moments, over the list of segments; the two below for as long as files are written.
        self._state = threading.Lock()
        # Held by whatever replaces segments, so that an erasure never misses rows that a merge just moved.
        self._maintenance = threading.Lock()
        self._appending = threading.Lock()
        self._segments: list[Segment] = []
        self.damaged: list[SegmentDamagedError] = []
        self.rebuilding = False
        try:
            # Without its parents: the name of a term that has ended must not come into being again.
            directory.mkdir(exist_ok=True)
            self._recover()
        except OSError as exc:
            raise ArchiveFailedError(f"cannot open {directory}: {exc.strerror or exc}") from exc

    def snapshot(self) -> Snapshot:
        """Return what is archived now."""
        return self._snapshot_of(self._listed())

    def open_snapshot(self) -> tuple[Snapshot, list[pa.OSFile]]:
        """Return what is archived now, and the open file of each segment, for the caller to close. They can
        be read to their ends, whatever is merged or erased meanwhile.

        Raises `SegmentDamagedError` where one is missing, `ArchiveFailedError`.
        """
        with contextlib.ExitStack() as opened, self._state:
            # A segment leaves the list, which is held here, before its file goes.
            files = []
            for segment in self._segments:
                try:
                    files.append(opened.enter_context(open_segment(segment.path)))
                except SegmentGoneError as exc:
                    raise SegmentDamagedError(segment.path, "is missing") from exc
            opened.pop_all()
            return self._snapshot_of(self._segments), files

    def _snapshot_of(self, segments: Sequence[Segment]) -> Snapshot:
        paths, rows = tuple(each.path for each in segments), sum(each.rows for each in segments)
        return Snapshot(self.epoch, paths, join_spans(each.spans for each in segments), rows)

    def has_holes(self) -> bool:
        """Say whether segments are missing between others."""
        expected = 1
        for segment in self._listed():
            if segment.name.first != expected:
                return True
            expected = segment.name.last + 1
        return False

    def append(self, table: pa.Table, spans: Spans) -> None:
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

    def merge(self) -> bool:
        """Merge one run of neighbours; say whether there was one. Sets a damaged segment aside."""
        with self._maintenance:
            segments = self._listed()
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
            self._replace(merged, name, _joined(tables), spans)
            return True

    def erase(self, user_id: bytes, up_to_n: int) -> int:
        """Take a user's events up to `up_to_n` out of every segment; return how many there were.

        Repeating is safe. Damaged files that were set aside cannot be searched, so they are removed.
        """
        erased = 0
        with self._maintenance:
            for segment in self._listed():
                try:
                    table, spans = read_segment(segment.path)
                except SegmentDamagedError as exc:
                    self._set_aside(segment, exc)
                    continue
                # The ids first: of many segments few have the user, and the filter copies all columns.
                if not pc.any(pc.equal(table["user_id"], string_array([user_id])[0])).as_py():
                    continue
                kept = without_user(table, user_id, up_to_n)
                if kept.num_rows < table.num_rows:
                    erased += table.num_rows - kept.num_rows
                    name = SegmentName(segment.name.first, segment.name.last, segment.name.revision + 1)
                    self._replace([segment], name, kept, spans)
            # The rebuild that follows does not need them, and nothing else reads them.
            for path in self.directory.glob(f"*{DAMAGED}"):
                path.unlink()
        return erased

    def erase_digests(self, digests: Collection[bytes]) -> int:
        """Take out all of the users whose ids have these digests; return how many events there were."""
        if not digests:
            return 0
        ids: set[bytes] = set()
        for segment in self._listed():
            with contextlib.suppress(SegmentDamagedError):
                ids.update(pc.unique(read_segment(segment.path)[0]["user_id"]).cast(pa.binary()).to_pylist())
        wanted = [user_id for user_id in ids if digest_of(user_id) in digests]
        return sum(self.erase(user_id, ALL_OF_A_USER) for user_id in wanted)

    def begin_rebuild(self) -> list[Segment]:
        """Return the segments that are to be replaced by those appended from now on, which cover no span.

        They stay until `finish_rebuild`: an archive with parts of an unfinished rebuild counts as incomplete
        as it did before, and the next rebuild covers those too.
        """
        # A merge that runs is waited for, and no other begins: it would change the segments that are
        # returned.
        with self._maintenance:
            self.rebuilding = True
            return self._listed()

    def finish_rebuild(self, old: Sequence[Segment], spans: Spans, keep: Keep) -> None:
        """Replace the `old` segments in one commit: those appended after them are the archive, and cover
        `spans`. What is replaced is given to `keep` first: it may have what the store does not.
        """
        with self._maintenance:
            if any(segment.rows for segment in old):
                self._guard()
                keep([segment.path for segment in old])
            if old:
                revision = max(segment.name.revision for segment in old) + 1
                name = SegmentName(1, old[-1].name.last, revision)
                self._replace(old, name, SCHEMA.empty_table(), spans)
            self.damaged.clear()
        if not old:
            self.append(SCHEMA.empty_table(), spans)
        self.rebuilding = False

    def set_aside(self, path: Path, why: str) -> None:
        """Take a segment that a reader found damaged out of the log; its file stays, for a person."""
        with self._maintenance:
            for segment in self._listed():
                if segment.path == path:
                    self._set_aside(segment, SegmentDamagedError(path, why))

    def _listed(self) -> list[Segment]:
        with self._state:
            return list(self._segments)

    def _replace(self, old: Sequence[Segment], name: SegmentName, table: pa.Table, spans: Spans) -> None:
        new = write_segment(self.directory, name, table, spans, step=self._step, guard=self._guard)
        with self._state:
            others = [segment for segment in self._segments if segment not in old]
            self._segments = sorted([*others, new], key=lambda segment: segment.name)
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
        # Under a temporary name nothing was committed: what it had is in the stream, or in the files that it
        # covers.
        for leftover in self.directory.glob(f"*{TEMPORARY}"):
            leftover.unlink()
        files = _segment_files(self.directory)
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


def _joined(tables: Sequence[pa.Table]) -> pa.Table:
    """Return tables one behind the other; where one has contexts, the others have none of theirs."""
    return pa.concat_tables(tables, promote_options="default")


def uncovered(directory: Path) -> list[tuple[SegmentName, Path]]:
    """Return the files that make up the log of an epoch, in its order; nothing is changed."""
    files = _segment_files(directory)
    return [(name, path) for name, path in files if not any(other.covers(name) for other, _ in files)]


def read_spans(directory: Path) -> dict[int, Span]:
    """Return what an epoch's log covers, as its footers say; a damaged segment covers nothing here.

    Raises `ArchiveRefusedError` for a segment of a newer format, `ArchiveFailedError`. Changes nothing.
    """
    for _ in range(_LISTINGS):
        found = []
        try:
            for name, path in uncovered(directory) if directory.exists() else ():
                with contextlib.suppress(SegmentDamagedError):
                    found.append(inspect_segment(path, name).spans)
        except (SegmentGoneError, FileNotFoundError):
            continue
        return join_spans(found)
    raise ArchiveFailedError(f"{directory} changes all the time")


def _segment_files(directory: Path) -> list[tuple[SegmentName, Path]]:
    named = [(SegmentName.parse(path.name), path) for path in directory.iterdir()]
    return sorted((name, path) for name, path in named if name is not None)
