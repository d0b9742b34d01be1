"""Verify: the archive has what the store has, and the store what the archive has, while everything runs.

Invariant: only users who stood still are compared, and those who did not are counted. The store is read
first, then the cut is taken, then the archive is read up to it: so the archive knows of each user at least
what was read of the store.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace

import msgspec
import numpy as np
import numpy.typing as npt

from factors import Int64s
from featurestore.catalogue.dump import dump_from_bytes
from featurestore.errors import StoreDamaged
from featurestore.keys import digest_of
from featurestore.store import Store
from foldin.errors import StoppedError
from foldin.recovery.adoption import require_match
from foldin.recovery.events import (
    NUMBERS,
    Histories,
    RatingEvents,
    of_parts,
    read_histories,
    with_codes_of,
)
from foldin.recovery.merging import differences, holding
from foldin.recovery.reaching import Reached, read_reached
from foldin.recovery.retries import Progress, Say, no_progress, retried
from trainer.archive.kept import NAME as KEPT
from trainer.archive.kept import read_kept
from trainer.archive.reading import read_part
from trainer.archive.segments import open_segment, read_columns
from trainer.errors import ArchiveFailedError, SegmentDamagedError
from trainer.settings import TrainerSettings

# Of the differences: what fits on a terminal.
SHOWN = 20


@dataclass(frozen=True, slots=True)
class Verified:
    """`users`, `ratings`: compared and the same or not; `moved`: users who rated, or were forgotten,
    meanwhile; `differences`: one line each, the first `SHOWN` of `count`.
    """

    users: int
    ratings: int
    moved: int
    count: int
    differences: tuple[str, ...]


async def verify(
    store: Store, settings: TrainerSettings, say: Say, progress: Progress = no_progress
) -> Verified:
    """Compare the live history in the store with its archive. `progress`: by partitions of the store, then
    by files of the archive.

    Raises `StoppedError` where the archive does not come to have all, `CannotStartError`.
    """
    await require_match(store, settings)
    epoch = (await retried(store.generations.live)).epoch
    # In this order, so that an archive which lacks something of what was read cannot be just late.
    stored = await read_histories(store, epoch, progress=progress)
    folder = settings.archive_folder / f"epoch-{epoch:06d}"
    archived, item_row = await read_reached(
        store, epoch, folder, say, lambda reached: _read(reached, progress)
    )
    registry = store.items(epoch)
    await retried(registry.refresh)
    both = await asyncio.to_thread(_aligned, stored, archived)
    wrong = await asyncio.to_thread(_wrong_rows, archived, item_row, registry.ids)
    still = both.stored_n == both.archived_n
    lines = await _apart(store, epoch, both)
    wrong += lines
    moved = int((~still).sum()) - len(lines)
    lines, ratings = await asyncio.to_thread(_compare, both, still)
    wrong += lines
    wrong += await _kept(store, settings, say)
    return Verified(int(still.sum()), ratings, moved, len(wrong), tuple(wrong[:SHOWN]))


@dataclass(frozen=True, slots=True)
class _Both:
    """Both sides with the same codes; `stored_n`, `archived_n` int64 (u,): the count of each user, 0 where it
    is not there.
    """

    stored: RatingEvents
    archived: RatingEvents
    stored_n: Int64s
    archived_n: Int64s


def _read(reached: Reached, progress: Progress) -> tuple[RatingEvents, Int64s]:
    """Return the archived events and the item row of each."""
    try:
        # Opened at once: a merge takes files away meanwhile.
        files = [(segment.path, open_segment(segment.path)) for segment in reached.segments]
        parts = []
        for path, file in files:
            parts.append(read_part(read_columns(path, file), (*NUMBERS, "item_row")))
            progress(len(parts), len(files))
    except SegmentDamagedError as exc:
        raise StoppedError(f"{exc.path} is damaged ({exc.why}): the trainer rebuilds it") from exc
    except ArchiveFailedError as exc:
        raise StoppedError(f"{exc}: run this again") from exc
    rows = [np.zeros(0, np.int64), *(part.numbers.pop("item_row") for part in parts)]
    return of_parts(parts), np.concatenate(rows)


def _aligned(stored: Histories, archived: RatingEvents) -> _Both:
    theirs = with_codes_of(archived, stored.events)
    ours = replace(stored.events, user_ids=theirs.user_ids, item_ids=theirs.item_ids)
    count = len(theirs.user_ids)
    stored_n, archived_n = np.zeros(count, np.int64), np.zeros(count, np.int64)
    stored_n[: len(stored.n)] = stored.n
    np.maximum.at(archived_n, theirs.user, theirs.n)
    return _Both(ours, theirs, stored_n, archived_n)


async def _apart(store: Store, epoch: int, both: _Both) -> list[str]:
    """Return a line for each user whose counts differ, and who has neither rated nor been forgotten since."""
    wrong: list[str] = []
    apart = np.flatnonzero(both.stored_n != both.archived_n).tolist()
    if not apart:
        return wrong
    ids = both.stored.user_ids
    forgotten = set(await retried(store.ratings.forgotten, epoch))
    # A user who took all back, whose history was compacted: a rebuilt archive has nothing of that.
    rated = set(both.stored.user[holding(both.stored)].tolist())
    for code in apart:
        user_id = ids[code].as_buffer().to_pybytes()
        seen, known = int(both.stored_n[code]), int(both.archived_n[code])
        # Once more: who rated meanwhile has caught up with the archive by now.
        now, _ = await retried(store.users.history, epoch, user_id)
        if digest_of(user_id) in forgotten:
            continue
        if now < known:
            wrong.append(f"user {ids[code]}: the archive has {known} events, the store {now}")
        elif known < seen and now >= seen and (known or code in rated):
            wrong.append(f"user {ids[code]}: the store has {seen} events, the archive {known}")
    return wrong


def _compare(both: _Both, still: npt.NDArray[np.bool_]) -> tuple[list[str], int]:
    """Compare what holds of the users who stood still; return the differences, and how many ratings."""
    stored = both.stored.take(still[both.stored.user])
    archived = both.archived.take(still[both.archived.user])
    stored, archived = stored.take(holding(stored)), archived.take(holding(archived))
    new, gone, other = differences(stored, archived)
    said = [
        *((archived, row, "is in the archive only") for row in new.tolist()),
        *((stored, row, "is in the store only") for row in gone.tolist()),
        *((archived, row, "has another rating, time or context in the archive") for row in other.tolist()),
    ]
    lines = [f"{_pair(events, row)} {what}" for events, row, what in said[:SHOWN]]
    # The rest is counted only.
    return lines + [""] * (len(said) - len(lines)), len(stored)


def _pair(events: RatingEvents, row: int) -> str:
    user, item = events.user_ids[int(events.user[row])], events.item_ids[int(events.item[row])]
    code = int(events.type_code[row])
    return f"user {user}, item {item}{f', event type {code}' if code else ''}:"


async def _kept(store: Store, settings: TrainerSettings, say: Say) -> list[str]:
    """Return a line where something besides ratings cannot be read in the store, the first thing, or in the
    archive, or is not the same in both.
    """
    path = settings.archive_folder / KEPT
    try:
        version, data = await retried(store.kept.packed)
        archived = await asyncio.to_thread(read_kept, settings.archive_folder)
        now = await retried(store.kept.version)
    except StoreDamaged as exc:
        return [str(exc)]
    except ArchiveFailedError as exc:
        return [f"{exc}: put it away, and a trainer that starts writes it anew"]
    if archived is None or not archived.version == version == now:
        say(f"{path} is of another moment: a trainer that leads writes it anew. It was not compared.")
        return []
    # The archive has no attributes of users.
    stored = msgspec.structs.replace(await asyncio.to_thread(dump_from_bytes, data), users=[])
    return [] if archived == stored else [f"{path} has something else than the store"]


def _wrong_rows(archived: RatingEvents, item_row: Int64s, ids: Sequence[bytes]) -> list[str]:
    """A line for each item that the archive knows by a row that the registry has given to another one."""
    width = len(archived.item_ids) + 1
    wrong = []
    # Each item once: millions of events name thousands.
    for each in np.unique(item_row * width + archived.item).tolist():
        row, code = divmod(each, width)
        item_id = archived.item_ids[code]
        if row >= len(ids) or ids[row] != item_id.as_buffer().to_pybytes():
            there = ids[row].decode("utf-8", "replace") if row < len(ids) else "nothing"
            wrong.append(f"item {item_id}: row {row} in the archive, which is {there} in the store")
    return wrong
