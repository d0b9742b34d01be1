"""A namespace moves to another store while it serves. Invariant: at every moment one of the two stores is
whole and takes ratings, or will when this is run again or given up; never both.

    begin -> copy -> compare -> catch up -> close -> archive -> copy the rest -> decide -> open

Up to `close` everything goes on, and the source remembers who changes. Between `close` and `open` ratings are
refused with 503; reads go on. `decide` is one step in the source (`stages.py`).
"""

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from typing import Any

from featurestore.errors import StoreError, StoreMigrating, StoreUnavailable
from featurestore.generations.served import FOLLOWED_S
from featurestore.migration import target as targets
from featurestore.migration.shared import SharedCopies, copy_partitions, until_archived, waits
from featurestore.migration.stages import (
    CLOSING,
    COPYING,
    GONE,
    MOVED,
    MigrationRefused,
    MigrationStopped,
    Placing,
    Stages,
    require_one_history,
)
from featurestore.migration.target import arriving
from featurestore.migration.users import UserCopies
from featurestore.settings import StoreSettings, split_address
from featurestore.store import Store

# How long a command counts as running that says nothing, and how often it says so.
_SILENT_MS, _SAID_S = 15_000, 3.0
# Users who change while the ones before are copied: with so few left the source is closed.
_FEW, _MOST_ROUNDS = 500, 50
# A store that is away for longer is not waited for by what must be said to it.
_PATIENCE_S = 60.0
# How long it may take the trainer to archive what waits.
_ARCHIVED_S = 30.0

Step = Callable[[str], None]
"""Called with the name of each step before it is done. Tests kill the process there."""


def no_step(_name: str) -> None:
    """Do nothing between steps."""


@dataclass(frozen=True, slots=True)
class Telling:
    """How a person sees what is done. `progress`: how much of how much, None where that is not known."""

    say: Callable[[str], object]
    progress: Callable[[int, int | None], object]


@dataclass(frozen=True, slots=True)
class Migrated:
    """What came of it. `users`: how many there were; `digests`: of each partition of the target how many
    users, and one number over all that both stores have of these; `again`: users who were copied again after
    they had changed; `refused_s`: for how long ratings were refused.
    """

    address: str
    users: int
    events: int
    digests: tuple[tuple[int, int], ...]
    again: int
    refused_s: float


class Migration:
    """One move of a namespace."""

    def __init__(
        self,
        source: Store,
        target: StoreSettings,
        telling: Telling,
        *,
        step: Step = no_step,
    ) -> None:
        self._source = source
        self._target = target
        self._telling = telling
        self._step = step
        self._token = secrets.token_hex(8)
        self._address = shown_address(target)

    @property
    def target(self) -> StoreSettings:
        """The store that it moves to, after `run` as that is."""
        return self._target

    async def look(self) -> str:
        """Return how far it is: `new`, or `decided` where nothing is left to do but to open the target.

        Raises `MigrationRefused` where it cannot be done as things are.
        """
        source = self._source
        pointer = await source.generations.live()
        if pointer.migration.startswith(GONE):
            await self._require_own(pointer.migration)
            return "decided"
        if pointer.moved_to == self._address and await targets.look(self._target, source.identity) == "whole":
            return "decided"
        await require_one_history(source, pointer.epoch)
        if not await source.leases.held() and await waits(source, pointer.epoch):
            raise MigrationRefused("events wait in the streams, and no trainer leads: start it first")
        found = await targets.look(self._target, source.identity)
        if found == "whole":
            raise MigrationRefused("the target is this very store, or a copy of it: give another one")
        return "new"

    async def _require_own(self, said: str) -> None:
        """Raise `MigrationRefused` where the namespace has moved to another store than this target."""
        _, token, address = said.split(" ", 2)
        found = await targets.token_of(self._target)
        whole = not found and await targets.look(self._target, self._source.identity) == "whole"
        if found != token and not whole:
            raise MigrationRefused(f"the namespace has moved to {address}")

    async def run(self) -> Migrated | None:
        """Move; return what came of it, None where all was decided before.

        Raises `MigrationRefused`; `MigrationStopped` and `StoreError`: the source takes ratings as before,
        where it can be reached.
        """
        async with self._alone():
            pointer = await self._source.generations.live()
            epoch = pointer.epoch
            if await self.look() == "decided":
                if pointer.migration.startswith(MOVED):
                    # The source has lost what it said before the target was opened.
                    said = pointer.migration.split(" ")[1]
                    await Stages(self._source, epoch, said, self._address).decide()
                self._telling.say("All is copied, and the source is closed for good: opening the target.")
                # What was asked for then, whatever is asked for now.
                self._target = await targets.as_it_is(self._target)
                await targets.finish(self._target, epoch)
                return None
            stages = Stages(self._source, epoch, self._token, self._address)
            config: Any = await self._source.redis.hgetall(self._source.keys.config)
            self._step("begin")
            try:
                # The source first: a command that was frozen meanwhile decides nothing once this is said.
                await stages.begin(COPYING)
                self._step("copying")
                await targets.begin(self._target, config, epoch, self._token)
                self._step("target")
                return await self._move(stages, epoch)
            except BaseException:
                await self._release(stages)
                raise

    async def _move(self, stages: Stages, epoch: int) -> Migrated:
        async with arriving(self._target, self._token) as target:
            sockets = target.bulk.reconnects_total
            since = target.confirmation.begin()
            placing = Placing(target, self._token)
            users = UserCopies(self._source, target, placing, epoch)
            shared = SharedCopies(self._source, target, placing, epoch)
            again = await self._copy(users, shared)
            self._step("closing")
            closed_at = time.monotonic()
            await stages.go_on(COPYING, CLOSING)
            self._telling.say("Ratings are refused from here on; what waits is archived.")
            self._step("closed")
            events = await until_archived(self._source, epoch, _ARCHIVED_S)
            self._step("archived")
            await stages.go_on(CLOSING, MOVED)
            moved_at = time.monotonic()
            self._step("moved")
            again += await users.copy_changed()
            await shared.finish()
            await copy_partitions(self._source, target, placing, epoch)
            self._step("copied")
            await target.confirmation.wait(since)
            if target.bulk.reconnects_total != sockets:
                raise MigrationStopped("the target was away for a moment, and may have lost what it had")
            digests = tuple(users.digests())
            self._step("decide")
            await _insist(stages.decide)
            self._step("decided")
        # By then each worker of the source marks its answers as what they are, or gives none.
        await asyncio.sleep(max(0.0, moved_at + FOLLOWED_S - time.monotonic()))
        await _insist(lambda: targets.finish(self._target, epoch))
        refused_s = time.monotonic() - closed_at
        self._step("open")
        return Migrated(self._address, len(users.copied), events, digests, again, refused_s)

    async def _copy(self, users: UserCopies, shared: SharedCopies) -> int:
        """Copy all while everything goes on, until few are left; return how many were copied again."""
        say, progress = self._telling.say, self._telling.progress
        await shared.find_outcomes()
        await shared.grow()
        await users.copy_all(lambda done: progress(done, None))
        self._step("users")
        say(f"{len(users.copied):,} users are copied; comparing")
        again = await users.copy_changed()
        total = len(users.copied)
        again += await users.compare_all(lambda done: progress(min(done, total), total))
        self._step("compared")
        for _ in range(_MOST_ROUNDS):
            changed = await users.copy_changed()
            await shared.grow()
            again += changed
            if changed <= _FEW:
                break
        return again

    async def _release(self, stages: Stages) -> None:
        """Have the source take ratings again, unless all is decided, or another command has taken over."""
        # Cancelled by Ctrl-C it is done all the same.
        with contextlib.suppress(StoreMigrating):
            await asyncio.shield(_insist(lambda: stages.end(own=True)))

    @contextlib.asynccontextmanager
    async def _alone(self) -> AsyncIterator[None]:
        """Keep other commands from moving this namespace. Raises `MigrationRefused`."""
        redis, key = self._source.redis, self._source.keys.migrator
        if not await self._hold():
            raise MigrationRefused(
                f"another `foldin migrate` runs, or ended less than {_SILENT_MS // 1000} s ago: "
                "run this again then"
            )
        saying = asyncio.create_task(self._say_alive(), name="say that the migration goes on")
        try:
            yield
        finally:
            saying.cancel()
            await asyncio.gather(saying, return_exceptions=True)
            with contextlib.suppress(StoreError):
                if await redis.get(key) == self._token.encode():
                    await redis.unlink(key)

    async def _say_alive(self) -> None:
        while True:
            await asyncio.sleep(_SAID_S)
            # One that is not heard loses no more than this; what it writes is guarded otherwise.
            with contextlib.suppress(StoreError):
                await self._hold()

    async def _hold(self) -> bool:
        """Say that this command runs, unless another one does; return whether that is said now."""
        redis, key = self._source.redis, self._source.keys.migrator
        if await redis.set(key, self._token, nx=True, px=_SILENT_MS):
            return True
        # Should another one take it between the two, that one's stays a moment longer.
        return await redis.get(key) == self._token.encode() and bool(await redis.pexpire(key, _SILENT_MS))


async def give_up(source: Store, target: StoreSettings | None = None) -> bool:
    """Have a source take ratings again, whatever a command that was cut off has left; return whether there
    was anything. `target`: nothing is left there, either.

    Raises `MigrationRefused` where all is decided, where that may be so and no target is given to be asked,
    and where the target is open.
    """
    pointer = await source.generations.live()
    stages = Stages(source, pointer.epoch, "", "")
    found = any(await stages.read())
    # A source that has lost its end may have said more than it says now.
    if target is None and pointer.migration.startswith(MOVED):
        raise MigrationRefused(
            f"the namespace was about to move to {pointer.moved_to}: give --to {pointer.moved_to} as well, "
            "which is asked whether it takes ratings already"
        )
    if target is not None:
        if pointer.moved_to not in {None, shown_address(target)}:
            raise MigrationRefused(f"the namespace was to move to {pointer.moved_to}: give that address")
        left = await targets.look(target, source.identity)
        if left == "whole":
            raise MigrationRefused(
                f"{shown_address(target)} has the namespace, and takes ratings: run `foldin migrate` again"
            )
        found = found or left == "begun"
    try:
        await stages.end(own=False)
    except StoreMigrating as exc:
        raise MigrationRefused(
            f"the namespace has moved to {pointer.moved_to or 'another store'}: "
            "run `foldin migrate` again to end what is left of that"
        ) from exc
    if target is not None and left == "begun":
        config: Any = await source.redis.hgetall(source.keys.config)
        await targets.clear(target, config, pointer.epoch)
    return found


def shown_address(target: StoreSettings) -> str:
    """Return the address of a store, as people and logs see it."""
    return str(replace(split_address(target.url), login=None))


async def _insist(call: Callable[[], Any]) -> None:
    """Await a call that may be repeated until the store takes it."""
    end = asyncio.get_running_loop().time() + _PATIENCE_S
    while True:
        try:
            await call()
            return
        except StoreMigrating:
            raise
        except StoreUnavailable as exc:
            if asyncio.get_running_loop().time() > end:
                raise MigrationStopped(
                    f"{exc}: run `foldin migrate` again, or with --abort, when it answers"
                ) from exc
            await asyncio.sleep(min(0.5, exc.retry_after_s))
