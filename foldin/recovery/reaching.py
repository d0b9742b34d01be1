"""Wait until the archive has what the store had at one moment, the cut. Invariant: of an archive that is
returned no event up to the cut is missing.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from featurestore.ratings.stream import Progress
from featurestore.store import Store
from foldin.errors import StoppedError
from foldin.recovery.retries import Say, T, has_leader, retried
from trainer.archive.events import join_spans
from trainer.archive.listing import uncovered
from trainer.archive.segments import Segment, inspect_segment
from trainer.errors import (
    ArchiveFailedError,
    SegmentDamagedError,
    SegmentGoneError,
)

# Ratings are archived within a second; a trainer that rebuilds its archive, or catches up, shows that it
# leads.
_PATIENCE_S = 20.0
# To read the footers of a hundred segments takes a few milliseconds.
_LOOK_S = 0.2

# Merges take files away while others are read; each listing finds most of them in place.
_LISTINGS = 20

Cut = Mapping[int, Progress]
"""By partition: how far its stream was."""


@dataclass(frozen=True, slots=True)
class Reached:
    """The segments of an epoch that have all up to the cut, in the order of the log."""

    cut: Cut
    segments: tuple[Segment, ...]


async def reach(store: Store, epoch: int, folder: Path, say: Say) -> Reached:
    """Return the archive of an epoch once it has all that was acknowledged before this call.

    A partition without events is left out of the cut.

    Raises `StoppedError` where no trainer archives it, `CannotStartError`.
    """
    found = await retried(store.stream.progress, epoch)
    cut = {partition: progress for partition, progress in found.items() if progress.last > (0, 0)}
    led_at, told = time.monotonic(), False
    while True:
        why, segments = await asyncio.to_thread(listed, folder, cut)
        if why is None:
            return Reached(cut, tuple(segments))
        # However long it takes: a trainer that leads is on its way there.
        if await has_leader(store):
            led_at = time.monotonic()
            if not told:
                say(f"Waiting for the trainer: {why}")
                told = True
        elif time.monotonic() - led_at > _PATIENCE_S:
            raise StoppedError(
                f"{why}, and no trainer leads: start one, on the folder of this archive, and run this again"
            )
        await asyncio.sleep(_LOOK_S)


async def read_reached(store: Store, epoch: int, folder: Path, say: Say, read: Callable[[Reached], T]) -> T:
    """Return what `read` makes, in a thread, of what `reach` returns. Raises as both, and `StoppedError`."""
    for _ in range(_LISTINGS):
        reached = await reach(store, epoch, folder, say)
        with contextlib.suppress(SegmentGoneError):
            return await asyncio.to_thread(read, reached)
    raise StoppedError("the archive changes all the time: run this again")


def listed(folder: Path, cut: Cut) -> tuple[str | None, list[Segment]]:
    """Return in what the archive falls short of the cut, None where it does not, and its segments."""
    segments: list[Segment] = []
    try:
        found = uncovered(folder) if folder.is_dir() else []
        for name, path in found:
            if name.first != (segments[-1].name.last if segments else 0) + 1:
                return f"{folder} lacks what comes before {path.name}", segments
            segments.append(inspect_segment(path, name))
    except ArchiveFailedError as exc:
        return str(exc), segments
    except (SegmentDamagedError, SegmentGoneError) as exc:
        # It is merged just now, or set aside and rebuilt by the trainer.
        return f"{folder / str(exc)}", segments
    # Both: after a rebuild a span says no more than where it ends.
    spans = join_spans(segment.spans for segment in segments)
    behind = 0
    for partition, progress in cut.items():
        span = spans.get(partition)
        have = 0 if span is None else span.events
        if span is None or span.last < progress.last or have < progress.last[1]:
            behind += max(1, progress.last[1] - have)
    return (f"{folder} lacks {behind:,} events" if behind else None), segments
