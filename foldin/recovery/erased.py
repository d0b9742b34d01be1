"""Who was erased, and when, from the ledgers and from what still waits in the store. Invariant: nothing that
a user rated before an erasure is restored; what a user rated after coming back is.
"""

import asyncio
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from factors import Int64s
from featurestore.keys import digest_of
from featurestore.store import Store
from foldin.errors import StoppedError
from foldin.recovery.events import RatingEvents, as_bytes, concatenated, of_tables, with_codes_of
from foldin.recovery.retries import retried
from processes.errors import CannotStartError
from trainer.archive.erasures import Ledger, ledger_files, parse_ledger, put_ledger
from trainer.archive.events import without_marks
from trainer.archive.reading import waiting_tables
from trainer.errors import LedgerDamagedError

# Later than any event: of an erasure whose time is not known.
_EVER = 2**62


@dataclass(frozen=True, slots=True)
class Erased:
    """`waiting`: erasures that no trainer has carried out, by user id, in milliseconds by the store's clock;
    `marked`: digests of the users whom the store keeps away from fits. `since`: what waits in the streams.
    """

    ledgers: Sequence[Ledger]
    waiting: Mapping[bytes, int]
    marked: Collection[bytes]
    since: RatingEvents

    def stays(self, events: RatingEvents) -> npt.NDArray[np.bool_]:
        """Say of each event, (m,), whether it arrived after the last erasure of its user."""
        at_ms = self._at(as_bytes(events.user_ids))
        return np.asarray(np.abs(events.arrived_ms) >= at_ms[events.user])

    def since_erasure(self, user_ids: list[bytes], at_ms: Int64s) -> npt.NDArray[np.bool_]:
        """Say of what each user had at a time, (u,), whether that was after the last erasure."""
        return np.asarray(at_ms >= self._at(user_ids))

    def of_older_copy(self, live: RatingEvents) -> RatingEvents:
        """Return the histories of a store that was put back from an older copy, without what was erased.

        Of users who were erased later what waits in the streams has come since; the rest is the copy's.
        """
        events = with_codes_of(live, self.since)
        erased = self._at(as_bytes(events.user_ids)) > 0
        came = self.since.take(self.stays(self.since) & erased[self.since.user])
        stays = events.take(~erased[events.user])
        return concatenated(stays, came, codes=events)

    def _at(self, user_ids: list[bytes]) -> Int64s:
        found = np.zeros(len(user_ids), dtype=np.int64)
        for ledger in self.ledgers:
            np.maximum(found, ledger.erased_at(user_ids), out=found)
        if self.waiting or self.marked:
            for code, user_id in enumerate(user_ids):
                found[code] = max(found[code], self.waiting.get(user_id, 0))
                # From before there was a ledger.
                if not found[code] and digest_of(user_id) in self.marked:
                    found[code] = _EVER
        return found


async def find_erased(
    store: Store, epoch: int, folder: Path, more: Sequence[Ledger], *, skip_damaged: bool
) -> Erased:
    """Return who was erased from an epoch and its archive, and from where the ledgers `more` come from.

    Raises `CannotStartError`.
    """
    # In the order in which an erasure goes: an erasure that has left one place is found in the next.
    commands = await retried(store.commands.take, "0", 0)
    tables = await retried(_waiting, store, epoch)
    marked = await retried(store.ratings.forgotten, epoch)
    ledgers = await asyncio.to_thread(read_ledgers, folder, skip_damaged=skip_damaged)
    # Also of one whose kind cannot be read: no other has a user.
    waiting = {each.user: each.at_ms for each in commands if each.user}
    events = []
    for table in tables:
        unmarked, marks = without_marks(table)
        waiting |= marks
        events.append(unmarked)
    return Erased([*ledgers, *more], waiting, marked, of_tables(events))


async def _waiting(store: Store, epoch: int) -> list[pa.Table]:
    return [table async for table in waiting_tables(store, epoch)]


def read_ledgers(folder: Path, *, skip_damaged: bool = False) -> list[Ledger]:
    """Return the ledgers in a folder, or that of one file. `skip_damaged`: what can be read of them.

    Raises `CannotStartError`.
    """
    found = []
    for path in [folder] if folder.is_file() else ledger_files(folder):
        try:
            found.append(parse_ledger(path, path.read_bytes(), skip_damaged=skip_damaged))
        except (LedgerDamagedError, OSError) as exc:
            if not skip_damaged:
                raise CannotStartError(
                    f"{path} is damaged, so users who were forgotten may come back: put the one of a backup "
                    "in its place, or go on with what can be read by --skip-damaged-ledger"
                ) from exc
    return found


def are_newer(ledgers: Sequence[Ledger], than: Sequence[Ledger]) -> bool:
    """Say whether any of the ledgers has an erasure that none of `than` has."""
    return not all(any(old.has_all_of(new) for old in than) for new in ledgers if len(new))


def ledger_copies(folder: Path) -> tuple[list[bytes], list[Path]]:
    """Return the content of each ledger in a folder, for a backup, and which are damaged: of the copies of
    these, too, a restore says so. Raises `CannotStartError`, OSError.
    """
    contents, damaged = [], []
    for path in ledger_files(folder):
        content = path.read_bytes()
        try:
            content = parse_ledger(path, content).content
        except LedgerDamagedError:
            damaged.append(path)
        contents.append(content)
    return contents, damaged


def take_over(ledgers: Sequence[Ledger], folder: Path) -> None:
    """Have erasures in an archive that it does not know of. Raises `StoppedError`."""
    known = read_ledgers(folder, skip_damaged=True)
    for ledger in ledgers:
        if any(each.has_all_of(ledger) for each in known):
            continue
        try:
            folder.mkdir(parents=True, exist_ok=True)
            put_ledger(folder, ledger.content)
        except OSError as exc:
            raise StoppedError(f"cannot write {folder}: {exc.strerror or exc}") from exc
