"""The archive of one epoch: every rating event once, in a log of segments that only grows at its end.

Invariant: what is found after a kill at any step is a state before or after one whole operation. Segments
are numbered without holes; a file that stands for several numbers (a merge) or for a later revision (an
erasure) makes the files that it covers superfluous from its rename on, and those are removed afterwards.
"""

import contextlib
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from featurestore.keys import digest_of
from trainer.archive.events import (
    ALWAYS,
    ERASED_BY,
    SCHEMA,
    Position,
    Rows,
    Spans,
    join_spans,
    not_of_users,
    string_array,
)
from trainer.archive.files import sync_directory
from trainer.archive.listing import recover
from trainer.archive.merging import MERGED_ROWS, choose_merge
from trainer.archive.segments import (
    DAMAGED,
    Guard,
    Segment,
    SegmentName,
    Step,
    no_step,
    open_rows,
    open_segment,
    read_parts,
    write_file,
    write_segment,
)
from trainer.archive.segments import read_spans as spans_in_footer
from trainer.archive.unread import UnreadFiles
from trainer.errors import (
    ArchiveFailedError,
    Failures,
    Named,
    SegmentDamagedError,
    SegmentGoneError,
    SegmentUnreadError,
    archive_errors,
)

Until = Mapping[int, Position] | None

# How often a segment is read again that could not be: of a large one it takes a second.
_AGAIN_S = 60.0


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
    threads. `replaceable`: whether a damaged file can be made anew from the store; those of the trash cannot.
    """

    def __init__(
        self,
        directory: Path,
        epoch: int,
        *,
        guard: Guard,
        step: Step = no_step,
        unread: UnreadFiles | None = None,
        replaceable: bool = True,
    ) -> None:
        self.directory = directory
        self.epoch = epoch
        self._replaceable = replaceable
        self._guard = guard
        self._step = step
        # Held for moments, over the list of segments; the two below for as long as files are written.
        self._state = threading.Lock()
        # Held by whatever replaces segments, so that an erasure never misses rows that a merge just moved.
        self._maintenance = threading.Lock()
        self._appending = threading.Lock()
        # Replaced, and perhaps not removed yet.
        self._covered: list[Segment] = []
        self.rebuilding = False
        self._unread = UnreadFiles() if unread is None else unread
        with archive_errors(f"open {directory}"):
            # Without its parents: the name of a term that has ended must not come into being again.
            directory.mkdir(exist_ok=True)
            # What a kill left half done is finished.
            self._segments, self.damaged = recover(directory, self._unread, step)

    def snapshot(self) -> Snapshot:
        """Return what is archived now."""
        return self._snapshot_of(self._listed())

    def open_snapshot(self) -> tuple[Snapshot, list[pa.NativeFile]]:
        """Return what is archived now, and the open file of each segment, for the caller to close. They can
        be read to their ends, whatever is merged or erased meanwhile.

        Raises `SegmentDamagedError` where one is missing, `ArchiveFailedError`.
        """
        with contextlib.ExitStack() as opened, self._state:
            # A segment leaves the list, which is held here, before its file goes.
            files = []
            for segment in self._segments:
                try:
                    with self._unread.looking():
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
            rows = Rows.of(table)
            segment = write_segment(self.directory, name, rows, spans, step=self._step, guard=self._guard)
            with self._state:
                self._segments.append(segment)

    def merge(self) -> bool:
        """Merge one run of neighbours; say whether there was one. Sets a damaged segment aside, and one that
        could not be read for long. Raises `ArchiveFailedError`; of a segment that could not be read the next
        call merges others.
        """
        with self._maintenance:
            if self.rebuilding:
                return False
            self._read_again()
            segments = self._listed()
            run = choose_merge([MERGED_ROWS if each.path in self._unread else each.rows for each in segments])
            if run is None:
                return False
            merged = segments[run]
            spans = join_spans(segment.spans for segment in merged)
            name = SegmentName(merged[0].name.first, merged[-1].name.last)
            try:
                with contextlib.ExitStack() as opened:
                    rows = [opened.enter_context(self._rows(segment)) for segment in merged]
                    self._replace(merged, name, Rows.joined(rows), spans)
            except SegmentDamagedError as exc:
                self._set_aside(next(each for each in merged if each.path == exc.path), exc)
                return False
            return True

    @contextlib.contextmanager
    def _rows(self, segment: Segment) -> Iterator[Rows]:
        """Give the verified events of a segment, which is open within the block."""
        try:
            with self._unread.looking(), open_segment(segment.path) as file:
                rows = open_rows(segment.path, file)
                self._unread.was_read(segment.path)
                yield rows
        except SegmentGoneError as exc:
            # A person has put it away.
            raise SegmentDamagedError(segment.path, "is missing") from exc

    def _read_again(self) -> None:
        """Look whether segments that could not be read can be, and set those aside that could not for long.
        Raises `ArchiveFailedError` for the others.
        """
        failures, listed = Failures(), self._listed()
        # What the process of a fit has open may have been replaced before it says that it cannot be read.
        self._unread.keep({segment.path.name for segment in listed})
        for segment in listed:
            ago_s = self._unread.last_looked_s(segment.path)
            if ago_s is None or ago_s < _AGAIN_S:
                continue
            with failures:
                try:
                    with self._rows(segment):
                        pass
                except SegmentDamagedError as exc:
                    self._set_aside(segment, exc)
                except SegmentUnreadError as exc:
                    self._set_aside(segment, self._unread.require_wait(exc))
        failures.throw()

    def note_unread(self, path: Named) -> None:
        """Take in that another process could not read a segment just now."""
        if any(segment.path.name == path.name for segment in self._listed()):
            self._unread.note(path)

    def require_readable(self) -> None:
        """Raise `ArchiveFailedError` where a file cannot be read that could not be before: an erasure would
        go through all the others for nothing.
        """
        unread = [self.directory / name for name in self._unread.seconds()]
        for path in [*unread, *self.directory.glob(f"*{DAMAGED}")]:
            with contextlib.suppress(SegmentDamagedError, SegmentGoneError), open_segment(path) as file:
                open_rows(path, file)

    def erase(self, before_ms: Mapping[bytes, int], until: Until = None) -> int:
        """Take the events that users had before a time of the store, `ALWAYS` for all of a user's, out of
        every segment, in one pass; return how many there were. What lies after the positions `until` stays.

        Repeating is safe, and events may be appended meanwhile. Damaged files that were set aside cannot be
        searched: where they can be made anew they are removed, elsewhere they stay, and the erasure waits for
        a person to decide. One that fits its checksum after all stays, without the users. Raises
        `ArchiveFailedError` when it has been through all the others: no file is removed that could not be
        read.
        """
        if not before_ms:
            return 0
        erased, failures = 0, Failures()
        with self._maintenance:
            if self._covered:
                # They may have the users.
                self._remove_covered()
            for segment in self._listed():
                with failures:
                    erased += self._erase_from(segment, before_ms, until)
            for path in self.directory.glob(f"*{DAMAGED}"):
                with failures:
                    erased += self._erase_set_aside(path, before_ms, until)
        failures.throw()
        return erased

    def _erase_from(self, segment: Segment, before_ms: Mapping[bytes, int], until: Until) -> int:
        name = SegmentName(segment.name.first, segment.name.last, segment.name.revision + 1)
        try:
            with self._rows(segment) as rows:
                kept, erased = _without(rows, before_ms, until)
                if erased:
                    self._replace([segment], name, kept, segment.spans)
        except SegmentDamagedError as exc:
            self._set_aside(segment, exc)
            return 0
        return erased

    def _erase_set_aside(self, path: Path, before_ms: Mapping[bytes, int], until: Until) -> int:
        try:
            with open_segment(path) as file:
                rows, spans = open_rows(path, file), spans_in_footer(path, file)
                kept, erased = _without(rows, before_ms, until)
                if erased:
                    write_file(path, kept, spans, step=self._step, guard=self._guard)
        except SegmentGoneError:
            return 0
        except SegmentDamagedError as exc:
            if not self._replaceable:
                raise ArchiveFailedError(
                    f"{path} is damaged and cannot be searched for who is forgotten: restore it, or remove it"
                ) from exc
            # The rebuild that follows does not need it, and nothing else reads it.
            self._guard()
            with self._writing():
                path.unlink(missing_ok=True)
            return 0
        return erased

    def erase_digests(self, digests: Collection[bytes]) -> int:
        """Take out all of the users whose ids have these digests; return how many events there were. Raises
        as `erase`.
        """
        if not digests:
            return 0
        ids: set[bytes] = set()
        failures = Failures()
        for segment in self._listed():
            with contextlib.suppress(SegmentDamagedError), failures:
                for part in read_parts(segment.path, ["user_id"]):
                    ids.update(pc.unique(part["user_id"]).cast(pa.binary()).to_pylist())
        wanted = {user_id: ALWAYS for user_id in ids if digest_of(user_id) in digests}
        erased = 0
        with failures:
            erased = self.erase(wanted)
        failures.throw()
        return erased

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

    def finish_rebuild(self, old: Sequence[Segment], spans: Spans) -> None:
        """Replace the `old` segments in one commit: those appended after them are the archive, and cover
        `spans`.
        """
        with self._maintenance:
            if old:
                revision = max(segment.name.revision for segment in old) + 1
                name = SegmentName(1, old[-1].name.last, revision)
                self._replace(old, name, Rows.of(SCHEMA.empty_table()), spans)
            self.damaged.clear()
        if not old:
            self.append(SCHEMA.empty_table(), spans)
        self.rebuilding = False

    def set_aside(self, path: Named, why: str) -> None:
        """Take a segment that a reader found damaged out of the log; its file stays, for a person."""
        with self._maintenance:
            for segment in self._listed():
                if segment.path.name == path.name:
                    self._set_aside(segment, SegmentDamagedError(path, why))

    def require_replaced(self, name: str) -> None:
        """Raise `SegmentDamagedError` where a file is listed that a reader did not find: it leaves the list
        before it goes.
        """
        for segment in self._listed():
            if segment.path.name == name:
                raise SegmentDamagedError(segment.path, "is missing")

    def _listed(self) -> list[Segment]:
        with self._state:
            return list(self._segments)

    def _replace(self, old: Sequence[Segment], name: SegmentName, rows: Rows, spans: Spans) -> None:
        new = write_segment(self.directory, name, rows, spans, step=self._step, guard=self._guard)
        with self._state:
            others = [segment for segment in self._segments if segment not in old]
            self._segments = sorted([*others, new], key=lambda segment: segment.name)
        self._covered += old
        self._remove_covered()

    def _remove_covered(self) -> None:
        """Remove files that others cover. Raises `ArchiveFailedError`: then the next call removes them."""
        with self._writing():
            for segment in self._covered:
                # After a removal that failed, and damage, its name may have been given again.
                if any(segment.path == listed.path for listed in self._listed()):
                    continue
                self._step("replace:unlink")
                segment.path.unlink(missing_ok=True)
                self._unread.was_read(segment.path)
            self._step("replace:unlinked")
            sync_directory(self.directory)
        self._covered.clear()

    def _writing(self) -> contextlib.AbstractContextManager[None]:
        return archive_errors(f"write {self.directory}")

    def _set_aside(self, segment: Segment, damage: SegmentDamagedError) -> None:
        with self._state:
            self._segments.remove(segment)
            self.damaged.append(damage)
        self._unread.was_read(segment.path)
        with self._writing():
            if segment.path.exists():
                segment.path.rename(segment.path.with_name(segment.path.name + DAMAGED))


def _without(rows: Rows, before_ms: Mapping[bytes, int], until: Until) -> tuple[Rows, int]:
    """Return events without those that users had before a time each, and how many those are."""
    # The ids first: of many segments few have any of them.
    wanted = string_array(list(before_ms))
    if not any(
        pc.any(pc.is_in(part["user_id"], value_set=wanted)).as_py() for part in rows.read(["user_id"])
    ):
        return rows, 0
    kept = rows.filtered([not_of_users(part, before_ms, until) for part in rows.read(ERASED_BY)])
    return kept, rows.count - kept.count
