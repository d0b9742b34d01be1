"""The auditor: looks into store and archive while clients call and faults come, and compares all.

Invariant: what it says of the store it has read there itself, past the proxies that faults cut.
"""

import asyncio
import contextlib
import math
import re
from collections import defaultdict
from collections.abc import Container, Iterable, Set
from http import HTTPStatus
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from factors import Ranker, Scorer, posterior_of
from featurestore.errors import StoreError
from featurestore.generations.live import LiveGeneration
from featurestore.generations.manifest import Pointer
from featurestore.store import Store
from foldin.errors import StoppedError
from foldin.recovery.reaching import reach
from foldin.recovery.retries import retried
from foldin.recovery.verifying import Verified, verify
from processes.errors import CannotStartError
from torture.calls import TRAIN_S
from torture.clients import ITEMS, RETIRED, Shared, follow_deletion, read_user
from torture.histories import Answered, Seen, World, Write, judge, observe
from torture.stack import Stack
from trainer.archive.segments import open_segment, read_segment
from trainer.errors import ArchiveRefusedError, SegmentGoneError

FILES = "no file has who was forgotten"
ORDER = "order of events"
GENERATION, POINTER = "one generation an answer", "the pointer goes forward"
ARCHIVE, SAME, NEXT = "the archive has what was acknowledged", "archive = store", "the next generation has it"
FORGOTTEN, BACK = "forgotten stays forgotten", "it comes back"
# Of a file that is searched, so that other threads have their turns; and more than an id has.
_PART_BYTES, _ID_BYTES = 1_000_000, 64
# Many times a refit: a generation is removed when the second one after it begins.
LOOK_S = 0.05
# By then a generation that answered was seen in the store, or never will be.
EXPLAINED_AFTER_S, UNKNOWN_AFTER_S = 1.0, 20.0
# After all faults are over: starts on busy cores, an epoch that was given up (60 s).
BACK_WITHIN_S = 150.0
# The store removes a file that was replaced in a thread of its own.
REMOVED_S = 1.0
# Then all that is stored is read, by more ways than one, and fitted.
AUDITED_WITHIN_S = 240.0


class Auditor:
    """Watches one stack. `store`: a connection of its own to the store; `epoch`: of the history that answers
    when it begins to watch; `patience`: how many times as long as promised it waits for rest.
    """

    def __init__(
        self, stack: Stack, store: Store, shared: Shared, epoch: int, *, patience: float = 1.0
    ) -> None:
        self._stack, self._store, self._shared = stack, store, shared
        self._patience = patience
        self._checks = shared.checks
        self._report = shared.checks.report
        self._seen: dict[int, Seen] = {}
        # How often the primary had been replaced when a generation was first seen.
        self._promotions: dict[int, int] = {}
        self._rows: dict[int, list[int]] = {}
        self._pointer: Pointer | None = None
        # The one that answers, as far as that is decided.
        self._epoch = epoch
        # Receipts that say `erased`.
        self._erased_by: set[str] = set()

    async def watch(self) -> None:
        """Look at the store until cancelled."""
        while True:
            with contextlib.suppress(StoreError):
                await self._look()
            # Also of a primary that confirms nothing any more: services read there, too.
            with contextlib.suppress(StoreError):
                await observe(self._store, self._seen)
            for number in self._seen.keys() - self._promotions.keys():
                self._promotions[number] = self._shared.promotions
            await self._explain()
            await asyncio.sleep(LOOK_S)

    async def _look(self) -> None:
        began = asyncio.get_running_loop().time()
        since = self._store.confirmation.begin()
        pointer, before = await self._store.generations.live(), self._pointer
        epochs = await self._epochs() if len(self._checks.histories.worlds) > 1 else set[bytes | None]()
        deletion = self._checks.histories.deletion
        taken_back = False
        if deletion is not None and not deletion.receipt and deletion.until < began:
            # It is not known whether it is carried out.
            stages: list[Any] = await self._store.redis.hvals(self._store.keys.erasing)
            taken_back = not any(stage.startswith(b"take_back") for stage in stages)
        # What only a primary has that is about to be replaced, nothing was promised of.
        await self._store.confirmation.wait(since)
        if taken_back and deletion is self._checks.histories.deletion:
            self._shared.caller.turned("taken back")
        self._pointer = pointer
        activating = self._shared.activating
        if before is not None:
            self._report.checked(POINTER)
            if is_backwards(before, pointer, activating):
                self._report.violated(POINTER, f"it went from {before} to {pointer}")
        # What was answered before this look has been seen by it.
        for number in [number for number, until in activating.items() if until < began]:
            del activating[number]
        self._decide(pointer, epochs, asyncio.get_running_loop().time())

    async def _epochs(self) -> set[bytes | None]:
        pipe = self._store.redis.pipeline()
        for partition in range(self._store.keys.partitions):
            pipe.get(self._store.keys.epochs(partition))
        return set(await pipe.execute())

    def _decide(self, pointer: Pointer, epochs: set[bytes | None], now: float) -> None:
        """See what became of a new history. `epochs`: of all partitions, empty where that was not asked."""
        histories = self._checks.histories
        if len(histories.worlds) == 1:
            self._epoch = pointer.epoch
        # An emptied store has none.
        elif epochs and all([each is not None and b"," in each for each in epochs]):
            if now < histories.worlds[1].since:
                self._shared.caller.turned("switched")
        elif epochs == {b"%d" % pointer.epoch} and not pointer.pending:
            if pointer.epoch > self._epoch:
                # At once: the next history may be begun before the next look.
                self._epoch = pointer.epoch
                self._shared.caller.turned("replaced")
            elif now > histories.undecided_until:
                self._shared.caller.turned("given up")

    async def _explain(self) -> None:
        now = asyncio.get_running_loop().time()
        waiting: list[Answered] = []
        for answer in self._shared.answers:
            known = self._seen.get(answer.generation)
            if now < answer.at + EXPLAINED_AFTER_S or (known is None and now < answer.at + UNKNOWN_AFTER_S):
                waiting.append(answer)
                continue
            rows = None if known is None else await self._rows_of(known.epoch)
            verdict = (
                None if known is None or rows is None else await asyncio.to_thread(judge, known, answer, rows)
            )
            self._report.checked(GENERATION)
            if verdict == "mixed" and self._promotions[answer.generation] != self._shared.promotions:
                # By a row, perhaps, that went with a primary between two looks.
                verdict = None
            if verdict is None:
                self._report.unjudged[GENERATION] += 1
            elif verdict != "explained":
                self._report.violated(GENERATION, f"{verdict}: {answer}")
        self._shared.answers[:] = waiting

    async def _rows_of(self, epoch: int) -> list[int] | None:
        """Return the item row of each item number; None where an epoch is gone."""
        if epoch not in self._rows:
            with contextlib.suppress(StoreError):
                rows = await self._store.items(epoch).rows([str(item).encode() for item in range(ITEMS)])
                if None not in rows:
                    self._rows[epoch] = [row for row in rows if row is not None]
        return self._rows.get(epoch)

    async def audit_archive(self) -> None:
        """Hold the archive against what was acknowledged, while all goes on."""
        world, began = self._checks.histories.live, asyncio.get_running_loop().time()
        # Before any receipt is asked for: a user who came back has older ones that say `erased`.
        retired = set(self._shared.retired)
        erased = await self._erased()
        epoch = (await retried(self._store.generations.live)).epoch
        if epoch != self._epoch:
            # Live for a moment only: the next look decides whose ratings it has.
            return
        folder = self._stack.settings.archive_folder / f"epoch-{epoch:06d}"
        events = None
        while events is None:
            reached = await reach(self._store, epoch, folder, lambda _line: None)
            with contextlib.suppress(SegmentGoneError):
                events = await asyncio.to_thread(_events, [segment.path for segment in reached.segments])
        await self._search(retired & erased.keys())
        if world is not self._checks.histories.live:
            return
        self._report.checked(ARCHIVE, len(events))
        for user, listed in events.items():
            self._check_user(user, listed, world, erased)
        for user, writes in world.writes.items():
            listed = events.get(user, [])
            have = {value for _, value in listed}
            if lost := [each for each in writes if each.ended < began and each.value not in have]:
                self._report.violated(ARCHIVE, f"user {user}: the archive lacks {lost[:3]}")

    def _check_user(
        self, user: str, events: list[tuple[int, float]], world: World, erased: dict[str, set[float]]
    ) -> None:
        numbers = [n for n, _ in events]
        if len(set(numbers)) != len(numbers):
            twice = sorted({n for n in numbers if numbers.count(n) > 1})
            self._report.violated(ARCHIVE, f"user {user}: events {twice[:5]} are there twice")
        sent = self._checks.histories.sent
        if user in sent:
            if never := [value for _, value in events if not math.isnan(value) and value not in sent[user]]:
                self._report.violated(ARCHIVE, f"user {user}: never sent were {never[:3]}")
            if back := {value for _, value in events} & erased.get(user, set()):
                self._report.violated(
                    FORGOTTEN, f"user {user}: erased, and in the archive: {sorted(back)[:3]}"
                )
            # Of the others there is nothing that must not be there.
            self._report.checked(FORGOTTEN, int(user in erased))
        self._report.checked(ORDER)
        if wrong := out_of_order(events, world.writes.get(user, [])):
            self._report.violated(ORDER, f"user {user}: {wrong}")

    async def _erased(self) -> dict[str, set[float]]:
        """Return, of users whose receipt says so, the ratings that must not be anywhere."""
        gone = {user: set(values) for user, values in self._checks.histories.gone.items()}
        receipts, pending = list(self._checks.receipts.items()), set[str]()
        for receipt, user in receipts:
            if receipt not in self._erased_by:
                reply = await self._shared.caller.call("receipt", "GET", f"/receipts/{receipt}")
                if reply.ok and reply.body["archive"] == "erased":
                    self._erased_by.add(receipt)
                else:
                    pending.add(user)
        return {user: gone.get(user, set()) for _, user in receipts if user not in pending}

    async def _search(self, gone: set[str]) -> None:
        """Look for users who are gone for good in all files."""
        if not gone or self._stack.servers is not None:
            # Files of replicas are not written anew.
            return
        folders = [self._stack.root, self._stack.folder / "logs"]
        self._report.checked(FILES, len(gone))
        if await asyncio.to_thread(files_with, gone, folders):
            await asyncio.sleep(REMOVED_S)
            for path, users in (await asyncio.to_thread(files_with, gone, folders)).items():
                where = path.relative_to(self._stack.folder)
                self._report.violated(FILES, f"{where} has {sorted(users)[:3]}, whose receipts say erased")
                # Told once.
                self._shared.retired -= users

    async def checkpoint(self) -> None:
        """Let all come to rest after the last fault, check everything, and go on."""
        shared = self._shared
        shared.open.clear()
        step = "rest"
        try:
            async with asyncio.timeout(BACK_WITHIN_S * self._patience):
                while waits_for := await self._waits_for():
                    step = f"rest ({waits_for})"
                    await asyncio.sleep(LOOK_S)
            async with asyncio.timeout(AUDITED_WITHIN_S * self._patience):
                step = "verify"
                verified = await verify(self._store, self._stack.settings, lambda _line: None)
                self._report.checked(SAME, verified.ratings)
                if verified.count:
                    self._report.violated(SAME, "; ".join(verified.differences))
                step = "archive"
                await self.audit_archive()
                step = "reads"
                await self._read_all()
                step = "refit"
                await self._next_generation(verified)
        except TimeoutError:
            self._report.violated(BACK, f"{step}: not in time: {self._stack.said[-3:]}")
        except (StoppedError, CannotStartError, ArchiveRefusedError, StoreError) as exc:
            self._report.violated(BACK, f"{exc!r}: {self._stack.said[-3:]}")
        else:
            self._report.checked(BACK)
        finally:
            shared.open.set()

    async def _waits_for(self) -> str:
        """Return what keeps all from being at rest; "" where nothing does."""
        shared = self._shared
        if shared.busy or shared.caller.in_flight.total():
            return f"{shared.busy} clients, calls {dict(+shared.caller.in_flight)}"
        if len(shared.checks.histories.worlds) > 1:
            return "what became of a new history"
        await follow_deletion(shared)
        if shared.checks.histories.deletion is not None:
            return "ratings of a deleted item"
        try:
            # One that waited for a full disk: until it is done the archive has what the store has not.
            stages: list[Any] = await self._store.redis.hvals(self._store.keys.erasing)
        except StoreError as exc:
            return repr(exc)
        if any(stage.startswith(b"asked") for stage in stages):
            return "an erasure"
        return "" if await asyncio.to_thread(self._stack.answers) else "a replica"

    async def _read_all(self) -> None:
        """Read every user who has one writer, at each replica."""
        for user in [each for each in self._checks.histories.live.cells if re.match(r"s\d", each)]:
            for replica in range(len(self._stack.urls)):
                # A worker that waits for a busy core says 503 now and then.
                status = 0
                while status not in {200, 404}:
                    status = (await read_user(self._shared, user, replica)).status
        for path in list(self._checks.documents.fields):
            for replica in range(len(self._stack.urls)):
                status = 0
                while status not in {200, 404}:
                    reply = await self._shared.caller.call("GET document", "GET", path, replica=replica)
                    status = reply.status
            if path.split("/")[2] in self._shared.retired:
                # Once is enough: there are more and more of them.
                del self._checks.documents.fields[path]

    async def _next_generation(self, verified: Verified) -> None:
        """Refit, and look whether the generation has seen all events of all users."""
        reply, asked_ms = None, 0
        while reply is None or reply.status != HTTPStatus.OK:
            # A fit that a fault has hit, or a fit that is under way, is waited for.
            asked_ms = await self._store.time_ms()
            reply = await self._shared.caller.call("refit", "POST", "/train", timeout_s=TRAIN_S)
            if isinstance(reply.body, dict) and reply.body.get("cause") == "gate_refused":
                # By the newest ratings it is worse than what is live, and at rest none come to change that.
                self._report.unjudged[NEXT] += 1
                return
            await asyncio.sleep(0.5 if reply.status != HTTPStatus.OK else 0.0)
        pointer = await self._store.generations.live()
        meta = await self._store.generations.meta(pointer.epoch, pointer.generation)
        self._report.checked(NEXT, verified.ratings)
        if meta.summary.n_ratings != verified.ratings:
            self._report.violated(
                NEXT,
                f"generation {pointer.generation} learned {meta.summary.n_ratings} of {verified.ratings}",
            )
        # The counter rule alone is asked, which needs no item.
        posterior = posterior_of(meta.model)
        items = np.empty((0, meta.model.item_width), dtype=np.float32)
        live = LiveGeneration(
            *(pointer.epoch, pointer.generation, posterior, items, 0),
            scorer=Scorer(posterior, items),
            ranker=Ranker(posterior, items),
            meta=meta,
        )
        users = [
            user
            for user, writes in self._checks.histories.live.writes.items()
            if any([write.known for write in writes])
        ]
        found = await self._store.users.lookup(live, [user.encode() for user in users])
        behind = [users[at] for at in {*found.behind, *np.flatnonzero(found.n == 0).tolist()}]
        if lost := [user for user in behind if not await self._is_ahead(pointer.epoch, user, asked_ms)]:
            self._report.violated(
                NEXT, f"generation {pointer.generation} has not seen all of {sorted(lost)[:5]}"
            )

    async def _is_ahead(self, epoch: int, user: str, asked_ms: int) -> bool:
        """Say whether attributes of a user were put while the clock was ahead of what it was when a fit was
        asked for: until it comes there no fit writes a record of that user, but the first reader.
        """
        described = await self._store.redis.hget(self._store.keys.user(epoch, user.encode()), "described")
        return int(described or 0) >= asked_ms


def is_backwards(before: Pointer, now: Pointer, asked: Container[int]) -> bool:
    """Say whether the pointer went where it must not: to an older history, to a leader before, or to an older
    generation that was not `asked` for.
    """
    if now.epoch < before.epoch or now.fence < before.fence:
        return True
    older = now.epoch == before.epoch and now.generation < before.generation
    return older and now.generation not in asked


def files_with(users: Set[str], folders: Iterable[Path]) -> dict[Path, set[str]]:
    """Return the files that have ids of these users, as `RETIRED` describes them, with those."""
    found = defaultdict[Path, set[str]](set)
    for path in [path for folder in folders for path in folder.rglob("*")]:
        with contextlib.suppress(OSError), path.open("rb") as file:  # a folder, a socket, or gone meanwhile
            end = b""
            while part := file.read(_PART_BYTES):
                found[path] |= {each.decode() for each in RETIRED.findall(end + part)} & users
                end = part[-_ID_BYTES:]
    return {path: those for path, those in found.items() if those}


def _events(paths: list[Path]) -> dict[str, list[tuple[int, float]]]:
    """Return (n, rating) of each user's events, by n."""
    # Opened at once: a merge takes files away meanwhile.
    files = [(path, open_segment(path)) for path in paths]
    tables = [read_segment(path, file) for path, file in files]
    if not tables:
        return {}
    wanted = ["user_id", "n", "rating"]
    # Some segments have contexts, others have not.
    table = pa.concat_tables([each.select(wanted) for each in tables])
    found = defaultdict(list)
    columns = [table[name].to_pylist() for name in wanted]
    for user, n, rating in zip(*columns, strict=True):
        found[user].append((n, rating))
    return {user: sorted(events) for user, events in found.items()}


def out_of_order(events: list[tuple[int, float]], writes: list[Write]) -> str | None:
    """Return which write was acknowledged before another began, and stands behind it; None where none is.

    `events`: of one user, in the order of `n`.
    """
    by_value = {write.value: write for write in writes}
    latest: Write | None = None
    for _, value in events:
        write = by_value.get(value)
        if write is None:
            continue
        if latest is not None and write.ended < latest.began:
            return f"{write} stands behind {latest}"
        if latest is None or write.began > latest.began:
            latest = write
    return None
