"""Ratings and events that were taken back, of which the store no longer knows. Invariant: what was taken back
before a restore, by its user or with its item, does not come back where live ratings lie on top.

A history that is compacted keeps only what holds. The archive keeps every event, so it is asked.
"""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from foldin.recovery.erased import Erased
from foldin.recovery.events import RatingEvents, joined, numbered_pairs, of_tables, with_codes_of
from foldin.recovery.retries import Say
from foldin.recovery.sources import LISTINGS
from processes.errors import CannotStartError
from trainer.archive.events import SCHEMA, Rows
from trainer.archive.listing import uncovered
from trainer.archive.segments import open_rows, open_segment
from trainer.errors import ArchiveFailedError, ArchiveRefusedError, SegmentDamagedError, SegmentGoneError
from trainer.fit_job.ratings import last_of_pairs


def with_taken_back(live: RatingEvents, erased: Erased, folder: Path | None, say: Say) -> RatingEvents:
    """Return the histories of the live epoch, after the events that took pairs back which they lack.
    `folder`: the archive of that epoch, None where there is none that knows. What is damaged there is told to
    `say`.

    Blocking: reads an archive in which anything was taken back twice. Raises `CannotStartError`.
    """
    events = of_tables([] if folder is None else [_archived(folder, say)])
    # What waits for the archive is later.
    events = joined(events, with_codes_of(erased.since, events))
    last = last_of_pairs(events.user, events.key, events.n)
    gone = events.take(last[np.isnan(events.rating[last])])
    gone = replace(gone.take(erased.stays(gone)), context=None)
    live = with_codes_of(live, gone)
    return joined(gone.take(~np.isin(*numbered_pairs(gone, live))), live)


def _archived(folder: Path, say: Say) -> pa.Table:
    """Return the events of an archive of users of whom any took a pair back, and of such items."""
    try:
        for _ in range(LISTINGS):
            with contextlib.suppress(SegmentGoneError), contextlib.ExitStack() as files:
                segments = _segments(folder, files, say)
                gone = _parts(segments, lambda part: pc.is_nan(part["rating"]))
                among = partial(_is_of, pc.unique(gone["user_id"]), pc.unique(gone["item_id"]))
                return _parts(segments, among) if len(gone) else gone
    except (ArchiveFailedError, ArchiveRefusedError, SegmentDamagedError, OSError) as exc:
        raise CannotStartError(
            f"{folder} says what was taken back since, and cannot be read ({exc}): run this again"
        ) from exc
    raise CannotStartError(f"{folder} changes all the time: run this again")


def _segments(folder: Path, files: contextlib.ExitStack, say: Say) -> list[Rows]:
    """Return the segments of an archive, whose `files` are open; those that are damaged are told of."""
    # Opened at once: a merge takes files away meanwhile.
    listed = uncovered(folder) if folder.is_dir() else []
    opened = [(path, files.enter_context(open_segment(path))) for _, path in listed]
    found = []
    for path, file in opened:
        try:
            found.append(open_rows(path, file))
        except SegmentDamagedError as exc:
            say(f"  {path} is damaged ({exc.why}): what it alone says was taken back comes back")
    return found


def _parts(segments: Sequence[Rows], keep: Callable[[pa.Table], pa.ChunkedArray]) -> pa.Table:
    """Return those rows for which the mask of a part says so."""
    parts = [part.filter(keep(part)) for rows in segments for part in rows.read(SCHEMA.names)]
    return pa.concat_tables([SCHEMA.empty_table(), *parts])


def _is_of(users: pa.Array, items: pa.Array, part: pa.Table) -> pa.ChunkedArray:
    of_users, of_items = (
        pc.is_in(part[name], value_set=those) for name, those in (("user_id", users), ("item_id", items))
    )
    return pc.and_(of_users, of_items)
