"""Which files are the log of an epoch. Invariant: one goes only where another one has all that it has."""

import contextlib
from pathlib import Path

from trainer.archive.events import START, Position, Span, join_spans
from trainer.archive.files import TEMPORARY, sync_directory
from trainer.archive.segments import (
    DAMAGED,
    Segment,
    SegmentName,
    Step,
    inspect_segment,
    open_rows,
    open_segment,
)
from trainer.archive.unread import UnreadFiles
from trainer.errors import (
    ArchiveFailedError,
    Failures,
    SegmentDamagedError,
    SegmentGoneError,
    SegmentUnreadError,
    archive_errors,
)

# A trainer that was replaced a moment ago may merge, or move the epoch, while it is listed.
_LISTINGS = 10


def recover(
    directory: Path, unread: UnreadFiles, step: Step
) -> tuple[list[Segment], list[SegmentDamagedError]]:
    """Finish what a kill left half done; return the segments in the order of the log, and what is damaged,
    which is set aside. What another file covers is removed once that one was read, and is whole.

    Raises `ArchiveFailedError` for files that cannot be read.
    """
    # Under a temporary name nothing was committed: what it had is in the stream, or in the files that it
    # covers.
    for leftover in directory.glob(f"*{TEMPORARY}"):
        leftover.unlink()
    files, failures = segment_files(directory), Failures()
    unread.keep({path.name for _, path in files})
    segments, damaged = list[Segment](), list[SegmentDamagedError]()
    while files:
        largest = [(name, path) for name, path in files if not any(it.covers(name) for it, _ in files)]
        sound, unknown = list[SegmentName](), list[SegmentName]()
        for name, path in largest:
            unknown.append(name)
            # Past one that cannot be read: all of them are waited for at once, not one after the other.
            with failures:
                try:
                    segment = _inspect(path, name, unread)
                    if any(name.covers(other) for other, _ in files):
                        # A footer says nothing of the rows before it.
                        with open_segment(path) as file:
                            open_rows(path, file)
                    segments.append(segment)
                    sound.append(name)
                except (SegmentDamagedError, SegmentGoneError) as exc:
                    gone = SegmentDamagedError(path, "is missing")
                    damaged.append(exc if isinstance(exc, SegmentDamagedError) else gone)
                    unread.was_read(path)
                    path.rename(path.with_name(path.name + DAMAGED))
                unknown.pop()
        rest = []
        for name, path in files:
            if any(each.covers(name) for each in sound):
                step("recover:unlink")
                path.unlink()
            elif (name, path) not in largest and not any(each.covers(name) for each in unknown):
                rest.append((name, path))
        files = rest
    failures.throw()
    sync_directory(directory)
    return sorted(segments, key=lambda segment: segment.name), damaged


def uncovered(directory: Path) -> list[tuple[SegmentName, Path]]:
    """Return the files that make up the log of an epoch, in its order; nothing is changed."""
    files = segment_files(directory)
    return [(name, path) for name, path in files if not any(other.covers(name) for other, _ in files)]


def _inspect(path: Path, name: SegmentName, unread: UnreadFiles) -> Segment:
    try:
        with unread.looking():
            segment = inspect_segment(path, name)
    except SegmentUnreadError as exc:
        raise unread.require_wait(exc) from exc
    unread.was_read(path)
    return segment


def read_spans(directory: Path, unread: UnreadFiles) -> dict[int, Span]:
    """Return what an epoch's log covers, as its footers say; a damaged segment covers nothing here, and one
    that could not be read for long.

    Raises `ArchiveRefusedError` for a segment of a newer format, `ArchiveFailedError`. Changes nothing.
    """
    for _ in range(_LISTINGS):
        found, failures = [], Failures()
        with archive_errors(f"read {directory}"), contextlib.suppress(SegmentGoneError, FileNotFoundError):
            listed = uncovered(directory) if directory.exists() else []
            unread.keep({path.name for _, path in listed})
            for name, path in listed:
                with contextlib.suppress(SegmentDamagedError), failures:
                    found.append(_inspect(path, name, unread).spans)
            failures.throw()
            return join_spans(found)
    raise ArchiveFailedError(f"{directory} changes all the time")


def read_ends(directory: Path, *, replaced: bool, unread: UnreadFiles | None = None) -> dict[int, Position]:
    """Return where an epoch's log ends in each partition. An epoch that was replaced is not compared with the
    store: where it cannot be read, the answer is no more than that it has something. `unread`: of a
    process that has waited for files. Raises as `read_spans`.
    """
    try:
        spans = read_spans(directory, UnreadFiles() if unread is None else unread)
        return {partition: span.last for partition, span in spans.items()}
    except ArchiveFailedError:
        if not replaced:
            raise
        return {0: START}


def segment_files(directory: Path) -> list[tuple[SegmentName, Path]]:
    """Return the segments in a folder, in their order, with those that others cover."""
    named = [(SegmentName.parse(path.name), path) for path in directory.iterdir()]
    return sorted((name, path) for name, path in named if name is not None)
