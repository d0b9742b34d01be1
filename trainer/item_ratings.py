"""Take the ratings of items back from all users, where an operator asked for it. Invariant: a rating that
came in after it was asked for stays, and one that is taken back is so as if its user had done it: by an event
in the history, the count, the stream and the archive.

Who rated is known to the archive, and what has come since to the store: a rating is taken back in the step
that finds no event of the item among those of its user since. So all of it may be done again, whatever was
killed.
"""

import asyncio
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from factors import Bools
from featurestore.commands import Command
from featurestore.errors import EpochGone, LeaseLost, StoreChanged, StoreError, StoreUnavailable
from featurestore.ratings.batches import Columns
from trainer import log
from trainer.archive.epoch_archive import EpochArchive
from trainer.archive.events import SCHEMA, Position, codes_of, lies_after, ratings_of, string_array
from trainer.archive.segments import read_parts
from trainer.consume.open_epochs import OpenEpoch, OpenEpochs
from trainer.errors import SegmentDamagedError, SegmentGoneError
from trainer.fit_job.ratings import last_of_pairs
from trainer.retry import with_retries
from trainer.stage import Stage, Tools

# Those of a script share one reading of the archive, which takes seconds; one alone waits no longer.
_TOGETHER_S = 0.2
# A new history is prepared for seconds; what is damaged, or refused by the store, stays so for minutes.
_LOOK_S, _MENDED_S = 0.25, 5.0
# Users of one call: some milliseconds of the event loop.
_USERS_AT_ONCE = 1_000
_WHY_NONE = "histories cannot be read (`foldin verify` names them), or have a newer rating each time"
# Items of one round: of each user who rated one 54 bytes and both ids are in memory.
_ITEMS_AT_ONCE = 128


@dataclass(slots=True, eq=False)
class _Waiting:
    """A command that is open, and what its caller waits for: whether its ratings were taken back."""

    command: Command
    done: asyncio.Future[bool]
    # In how many rounds, one after the other, no user's could be taken back; why one could not be done, and
    # when it is tried again, by the clock of the loop.
    fruitless: int = 0
    why: str = ""
    due_s: float = 0.0


class ItemRatings(Stage):
    """Takes ratings of items back for one term."""

    def __init__(self, tools: Tools, epochs: OpenEpochs) -> None:
        super().__init__(tools)
        self._epochs = epochs
        # In the order of their turns.
        self._waiting: dict[_Waiting, None] = {}
        self._any = asyncio.Event()

    async def taken_back(self, command: Command) -> bool:
        """Return True when no rating of the item from before the command is left, in the history, in the
        archive or for the next fit; False where its history was replaced before that.

        Raises `StoreError` for a command that cannot be read.
        """
        command.stream_ends()
        waiting = _Waiting(command, asyncio.get_running_loop().create_future())
        self._waiting[waiting] = None
        self._any.set()
        return await waiting.done

    async def run(self) -> None:
        """Take back whenever one waits, until cancelled."""
        while True:
            await self._any.wait()
            await asyncio.sleep(_TOGETHER_S)
            self._any.clear()
            try:
                pause_s = await self._round()
            except (EpochGone, StoreUnavailable):
                # Replaced or given up just now: which is live says the pointer.
                pause_s = _LOOK_S
            except (StoreChanged, LeaseLost):
                raise
            except StoreError as exc:
                # A receipt does not end before its ratings are gone, whatever a person must mend first.
                log.warning("take_back_waits", why=str(exc))
                pause_s = _MENDED_S
            if self._waiting:
                self._any.set()
                await asyncio.sleep(pause_s)

    async def _round(self) -> float:
        """Take back what those ask for whose turn it is, as far as it can be done now; return how long to
        wait before the next round.
        """
        pointer = await with_retries(self._store.generations.live)
        now_s = asyncio.get_running_loop().time()
        due = list(islice((each for each in self._waiting if each.due_s <= now_s), _ITEMS_AT_ONCE))
        asked = [each for each in due if each.command.epoch == pointer.epoch]
        for each in due:
            if each.command.epoch != pointer.epoch:
                self._end(each, False)
        only_into = (pointer.epoch, *([pointer.pending] if pointer.pending else []))
        # Ratings of a call that begins a new history came after what was asked before it: they are not
        # touched. What is restored is from before.
        if not asked or (pointer.pending and not pointer.pending_by):
            return _LOOK_S
        epoch = await self._epochs.open(pointer.epoch)
        await epoch.consumer.reached_now()
        commands = [each.command for each in asked]
        try:
            try:
                found = await with_retries(self._threads.run, holders, epoch.archive, commands)
            except SegmentGoneError as exc:
                # It was merged meanwhile, else it is damage.
                epoch.archive.require_replaced(str(exc))
                return 0.0
        except SegmentDamagedError as exc:
            log.warning("segment_damaged", epoch=pointer.epoch, segment=exc.path.name, why=exc.why)
            await self._threads.run(epoch.archive.set_aside, exc.path, exc.why)
            await epoch.consumer.repair()
            return 0.0
        self._step("take_back:found")
        whole = [
            await self._take_back(each, epoch, users, only_into)
            for each, users in zip(asked, found, strict=True)
        ]
        self._step("take_back:written")
        # From here on a fit knows of it.
        await epoch.consumer.reached_now()
        for each, is_whole in zip(asked, whole, strict=True):
            if is_whole:
                self._end(each, True)
            else:
                # Behind the others.
                del self._waiting[each]
                self._waiting[each] = None
        return _LOOK_S

    def _end(self, waiting: _Waiting, done: bool) -> None:
        del self._waiting[waiting]
        # One whose term ends is cancelled.
        if not waiting.done.done():
            waiting.done.set_result(done)

    async def _take_back(
        self, waiting: _Waiting, epoch: OpenEpoch, users: pa.Table, only_into: tuple[int, ...]
    ) -> bool:
        """Take an item's rating back from users, as `holders` returned them; say whether all are done. What
        keeps one of them from it, which a person must mend, keeps no other.
        """
        left_out, why = 0, ""
        at_once = min(_USERS_AT_ONCE, self._store.settings.stream_limit)
        for start in range(0, len(users), at_once):
            some = users.slice(start, at_once)
            user_ids = some["user_id"].cast(pa.binary()).to_pylist()
            columns = Columns(
                user_ids,
                [waiting.command.item or b""] * len(some),
                np.full(len(some), math.nan),
                np.full(len(some), time.time()),
                known=dict(zip(user_ids, some["n"].to_pylist(), strict=True)),
                only_into=only_into,
            )
            try:
                left_out += await with_retries(self._store.ratings.append_columns, columns)
            except (EpochGone, StoreUnavailable, StoreChanged, LeaseLost):
                raise
            except StoreError as exc:
                left_out, why = left_out + len(some), str(exc)
        # A round that takes some back, or meets who rates just now, goes on at once.
        waiting.fruitless = waiting.fruitless + 1 if left_out and left_out == len(users) else 0
        if waiting.fruitless > 1:
            why = why or _WHY_NONE
        if why and why != waiting.why:
            log.warning("take_back_waits", receipt=waiting.command.id, why=why)
        waiting.why = why
        waiting.due_s = asyncio.get_running_loop().time() + (_MENDED_S if why else 0.0)
        log.event("ratings_taken_back", epoch=epoch.archive.epoch, ratings=len(users) - left_out)
        return not left_out


def holders(archive: EpochArchive, commands: Sequence[Command]) -> list[pa.Table]:
    """Return, for each command, the users who hold a rating of its item from before it, as the archive says
    (`user_id`), and up to which `n` it has the events of each.

    Blocking: reads the whole archive twice. Takes memory for a row group, and for the users who rated the
    items, however often they rated these or others. Raises `SegmentDamagedError`, `SegmentGoneError`.
    """
    # Of one moment both times: what comes in between would be among the events of a user, but not of an item.
    paths = archive.snapshot().paths
    ratings = _last_ratings(paths, string_array({command.item or b"" for command in commands}))
    seen = _seen(paths, pc.unique(ratings["user_id"]))
    owners = [_owners(ratings, command) for command in commands]
    return [seen.take(pc.index_in(users, value_set=seen["user_id"])) for users in owners]


def _last_ratings(paths: Sequence[Path], items: pa.StringArray) -> pa.Table:
    """Return the last rating that each user has given to, or taken back from, each of `items`."""
    found = SCHEMA.empty_table()
    for path in paths:
        parts = (
            ratings_of(part.filter(pc.is_in(part["item_id"], value_set=items)))
            for part in read_parts(path, SCHEMA.names)
        )
        # Segment by segment: else it would grow with how often they have rated.
        found = pa.concat_tables([found, *parts]).combine_chunks()
        user, item = (codes_of([found[name]])[0] for name in ("user_id", "item_id"))
        last = last_of_pairs(user, item, found["n"].to_numpy())
        found = found.take(pa.array(last))
    return found


def _seen(paths: Sequence[Path], users: pa.StringArray) -> pa.Table:
    """Return the highest `n` of each of `users` among all events."""
    columns = ["user_id", "n"]
    found = SCHEMA.empty_table().select(columns)
    schema = found.schema
    for path in paths if len(users) else ():
        parts = (
            part.filter(pc.is_in(part["user_id"], value_set=users)) for part in read_parts(path, columns)
        )
        highest = pa.concat_tables([found, *parts]).group_by("user_id").aggregate([("n", "max")])
        found = highest.select(["user_id", "n_max"]).rename_columns(columns).cast(schema)
    return found.combine_chunks()


def _owners(ratings: pa.Table, command: Command) -> pa.ChunkedArray:
    """Return who holds a rating of a command's item from before it, by the last one of each user."""
    table = ratings.filter(pc.equal(ratings["item_id"], string_array([command.item or b""])[0]))
    held = ~np.isnan(table["rating"].to_numpy())
    return table["user_id"].filter(pa.array(held & ~_came_later(table, command)))


def _came_later(table: pa.Table, command: Command) -> Bools:
    """Say of each event (m,) whether it came in after the command was asked."""
    ends: dict[int, Position] = dict(enumerate(command.stream_ends()))
    # A rebuilt archive does not know where its events stood, but that all were there by that time: of one
    # that was rebuilt since, what the ratings say of themselves decides.
    rebuilt = table["stream_ms"].to_numpy() == 0
    since = table["stream_seq"].to_numpy() > command.at_ms
    given_later = 1000 * table["time"].to_numpy() > command.at_ms
    later: Bools = np.where(rebuilt, since & given_later, lies_after(table, ends))
    return later
