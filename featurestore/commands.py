"""What services ask of the trainer, and what came of it. Invariant: every leader sees a command until it has
an outcome, whichever process dies.
"""

import asyncio
import hashlib
import re
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from featurestore.client import Call, Client
from featurestore.errors import StoreDamaged, StoreError
from featurestore.keys import Keys, shown_key
from featurestore.leases import Lease

CommandKind = Literal["refit", "epoch", "erase", "take_back"]

FailureCode = Literal[
    "fit_refused",
    "gate_refused",
    "fit_failed",
    "publish_failed",
    "store_full",
    "epoch_gone",
    "gave_way",
    "held",
    "store",
    "unknown_command",
    "no_trainer",
]
"""Why the trainer did not do what was asked: the codes of `Outcome`."""
REFUSALS = frozenset({"fit_refused", "gate_refused"})
"""Those that are for the caller to mend: the same ratings would be refused again."""

# A caller that lost its connection may ask for the outcome for an hour.
OUTCOME_S = 3600
# Bounds the stream: far more than is asked for while a trainer is away.
MOST_COMMANDS = 100_000
# Calls that the store answers together, in some milliseconds.
_ASKED_AT_ONCE = 200
# A refit takes seconds: looking twenty times a second adds next to nothing to it.
POLL_S = 0.05
# The store's time at which a user was forgotten, and the user.
_ASKED = re.compile(rb"asked (\d+) (.+)", re.DOTALL)
# The epoch, the store's time, the ends of its streams, and the item.
_TAKE_BACK = re.compile(rb"take_back (\d+) (\d+) (\[[\d,\[\]]*\]) (.+)", re.DOTALL)

# Of an id, or a kind, that this version does not know: what can be a part of a key, and of a log line.
_NAME = re.compile(rb"[!-~]+")
GONE = "0-0"
"""Where no command stands: below all entries of a stream."""
# Enough to see what stands there, and none of a user's id: that comes after the time.
_SHOWN = 8

Ends = list[tuple[int, int]]
"""Where the stream of each partition ended (ms, number)."""


@dataclass(frozen=True, slots=True)
class Command:
    """One thing asked of the trainer. `stream_id` places it; `user` is set for `erase`, and `at_ms`, the
    store's time when that user was forgotten. For `take_back`, which takes back the ratings of an `item` that
    came in before it was asked for: `at_ms` and where the streams of the `epoch` ended then.

    `damaged`: why it cannot be carried out, as what was asked cannot be read; None of any other.
    """

    stream_id: str
    id: str
    kind: CommandKind
    epoch: int
    user: bytes | None
    at_ms: int = 0
    item: bytes | None = None
    ends: bytes = b""
    damaged: StoreDamaged | None = None

    def stream_ends(self) -> Ends:
        """Return `ends`, by partition. Raises `StoreError`."""
        try:
            return msgspec.json.decode(self.ends, type=Ends)
        except msgspec.MsgspecError as exc:
            raise StoreError("it cannot be read where the streams ended when this was asked") from exc


@dataclass(frozen=True, slots=True)
class Outcome:
    """How far a command has come. `code` is one of `FailureCode` (a trainer of another version may have
    more), `detail` is for people. Of one that waits for a fit: its `phase`, and how many sweeps of that have
    ended.
    """

    state: Literal["running", "done", "failed"]
    generation: int | None = None
    code: str | None = None
    detail: str | None = None
    phase: str | None = None
    sweep: int | None = None


class Commands:
    """Both ends of the commands. `block_s`: how long the store may block on one call: well below the timeout
    of a socket.
    """

    def __init__(self, keys: Keys, client: Client, block_s: float, identity: Callable[[], str]) -> None:
        self._keys = keys
        self._identity = identity
        self._client = client
        self._block_ms = max(1, int(1000 * block_s))

    async def ask(self, kind: CommandKind, *, epoch: int, user: bytes | None = None, at_ms: int = 0) -> str:
        """Ask, and return the id under which the outcome will be. Asking twice does it twice."""
        stage = b"asked %d %b" % (at_ms, user or b"") if kind == "erase" else b""
        return await self._ask(kind, epoch, stage, b"user", user or b"", b"at", b"%d" % at_ms)

    async def ask_to_erase(self, user: bytes, *, epoch: int, at_ms: int) -> str:
        """Ask for a user who was forgotten at this time to be erased, and return the id. Asking twice does it
        once: the id is made of both, and of the store's identity, without which it cannot be guessed.
        """
        (command_id,) = await self.ask_to_erase_all({user: at_ms}, epoch=epoch)
        return command_id

    async def ask_to_erase_all(self, forgotten: Mapping[bytes, int], *, epoch: int) -> list[str]:
        """The same for users, each with when it was forgotten. Some may be asked for where it raises."""
        ids, calls = [], []
        for user, at_ms in forgotten.items():
            told = hashlib.blake2b(b"%d %b" % (at_ms, user), key=self._identity().encode(), digest_size=16)
            ids.append(told.hexdigest())
            fields = b"user", user, b"at", b"%d" % at_ms
            stage = b"asked %d %b" % (at_ms, user)
            calls.append(self._question("erase", ids[-1], epoch, stage, *fields, once=True))
        for start in range(0, len(calls), _ASKED_AT_ONCE):
            await self._client.call("ask", *calls[start : start + _ASKED_AT_ONCE])
        return ids

    async def ask_to_take_back(self, item: bytes, *, epoch: int, at_ms: int, ends: Ends) -> str:
        """Ask for the ratings of an item to be taken back; see `Command`. Asking twice is harmless."""
        packed = msgspec.json.encode(ends)
        stage = b"take_back %d %d %b %b" % (epoch, at_ms, packed, item)
        fields = b"at", b"%d" % at_ms, b"item", item, b"ends", packed
        return await self._ask("take_back", epoch, stage, *fields)

    async def _ask(self, kind: CommandKind, epoch: int, stage: bytes, *fields: bytes) -> str:
        command_id = uuid.uuid4().hex
        await self._client.call("ask", self._question(kind, command_id, epoch, stage, *fields))
        return command_id

    def _question(
        self, kind: CommandKind, command_id: str, epoch: int, stage: bytes, *fields: bytes, once: bool = False
    ) -> Call:
        first = [b"id", command_id.encode(), b"kind", kind.encode(), b"epoch", b"%d" % epoch]
        # With a stage its receipt is good until it has ended, however long that takes.
        keys = [self._keys.commands, *([self._keys.erasing] if stage else [])]
        if kind == "erase":
            # Each worker drops its copies of users.
            keys.append(self._keys.live)
        if once:
            keys.append(self._keys.command(command_id))
        return keys, [b"%d" % MOST_COMMANDS, stage, *first, *fields]

    async def outcome(self, command_id: str) -> Outcome | None:
        """Return the outcome so far; None before a trainer took the command, and an hour after its end.

        Raises `StoreDamaged`.
        """
        key = self._keys.command(command_id)
        text = await self._client.get(key)
        if text is None:
            return None
        try:
            return msgspec.json.decode(text, type=Outcome)
        except msgspec.MsgspecError as exc:
            raise StoreDamaged(shown_key(key), "it is no outcome") from exc

    async def wait(self, command_id: str, timeout_s: float, *, taken: bool = False) -> Outcome | None:
        """Return the outcome once it is `done` or `failed`, or `taken`: once there is one; after `timeout_s`
        the outcome so far.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout_s
        while True:
            outcome = await self.outcome(command_id)
            known = outcome is not None and (taken or outcome.state != "running")
            if known or loop.time() >= end:
                return outcome
            await asyncio.sleep(POLL_S)

    async def take(self, after: str, block_ms: int) -> list[Command]:
        """Return commands that came after stream id `after` (`0`: all that are left), waiting for the first.

        Entries of a kind that this version does not know come too, as any other: the caller reports them
        failed. So do those that are `damaged`: the caller tells of them, and leaves them to a person.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + block_ms / 1000
        while True:
            left_ms = int(1000 * (end - loop.time()))
            block = min(left_ms, self._block_ms) if left_ms > 0 else None
            found: Any = await self._client.xread({self._keys.commands: after}, count=1000, block=block)
            if found or block is None:
                key = self._keys.commands
                return [
                    _command(key, stream_id, fields) for _, entries in found for stream_id, fields in entries
                ]

    async def report(self, lease: Lease, command_id: str, outcome: Outcome) -> None:
        """Store how far a command has come. Raises `LeaseLost`: what the next leader says stays."""
        keys = [self._keys.live, self._keys.command(command_id), self._keys.erasing]
        args = [b"%d" % lease.fence, msgspec.json.encode(outcome), b"%d" % OUTCOME_S]
        if outcome.state != "running":
            args.append(command_id.encode())
        await self._client.call("report", (keys, args))

    async def erasing(self) -> list[Command]:
        """Return the erasures that have not ended and whose commands are gone, or damaged: `user` is None
        where only the store's own files are left to be written anew. Those of an item's ratings likewise.
        """
        found: dict[Any, Any] = await self._client.hgetall(self._keys.erasing)
        # After the hash: what is asked meanwhile is in neither.
        after = "0"
        in_stream: set[bytes] = set()
        damaged: list[Command] = []
        while found and (commands := await self.take(after, 0)):
            after = commands[-1].stream_id
            in_stream.update(command.id.encode() for command in commands if command.damaged is None)
            damaged += [command for command in commands if command.damaged is not None]
        return [
            _left(self._keys.erasing, command_id, stage, damaged)
            for command_id, stage in found.items()
            if stage == b"files" or command_id not in in_stream
        ]

    async def leaving(self) -> set[bytes]:
        """Return the users whose erasure goes on, without those who are left in the store's files alone."""
        found: dict[Any, Any] = await self._client.hgetall(self._keys.erasing)
        return {asked[2] for stage in found.values() if (asked := _ASKED.fullmatch(stage))}

    async def drop_erasure(self, lease: Lease, command: Command) -> None:
        """Take a command to erase out of the stream, as it names the user; what is left of it is
        `erasing`. Safe to repeat. Raises `LeaseLost`.
        """
        keys = [self._keys.live, self._keys.commands, self._keys.erasing]
        args = [b"%d" % lease.fence, command.stream_id.encode(), command.id.encode()]
        await self._client.call("drop_erasure", (keys, args))

    async def stage(self, command_id: str) -> Literal["asked", "files"] | None:
        """Return how far an erasure, or the taking back of an item's ratings, has come: `files` where only
        the store's own files are left to be written anew; None where it has ended, or there is none.
        """
        found = await self._client.hget(self._keys.erasing, command_id)
        return None if found is None else "files" if found == b"files" else "asked"

    async def drop(self, stream_id: str) -> None:
        """Remove a command, which has its outcome."""
        await self._client.xdel(self._keys.commands, stream_id)


def _left(key: bytes, command_id: bytes, stage: bytes, damaged: list[Command]) -> Command:
    """Return what is left to do of a command that is in the hash `key`. Of those in the stream that are
    `damaged` the one that it was has its place, so that it leaves with the rest.
    """
    asked, of_item = _ASKED.fullmatch(stage), _TAKE_BACK.fullmatch(stage)
    name = command_id.decode("ascii", "replace")
    if not _NAME.fullmatch(command_id) or not (asked or of_item or stage == b"files"):
        why = f"{name!r} has {stage[:_SHOWN]!r}: no erasure that can be read"
        return Command(GONE, name, "erase", 0, None, damaged=StoreDamaged(shown_key(key), why))
    user, item = asked and asked[2], of_item and of_item[4]
    places = [
        each.stream_id
        for each in damaged
        if each.id == name or (user and each.user == user) or (item and each.item == item)
    ]
    place = places[0] if places else GONE
    if of_item:
        epoch, at_ms = int(of_item[1]), int(of_item[2])
        return Command(place, name, "take_back", epoch, None, at_ms, item, of_item[3])
    return Command(place, name, "erase", 0, user, int(asked[1]) if asked else 0)


def _command(key: bytes, stream_id: bytes, fields: Mapping[bytes, bytes]) -> Command:
    name, kind, at = fields.get(b"id", b""), fields.get(b"kind", b""), fields.get(b"at", b"0")
    user, item = fields.get(b"user") or None, fields.get(b"item") or None
    epoch = fields.get(b"epoch", b"0")
    readable = {
        "id": _NAME.fullmatch(name),
        "kind": _NAME.fullmatch(kind),
        "at": at.isdigit(),
        # Of no user an erasure would end at once, and say that it is done.
        "user": kind != b"erase" or user,
        "item": kind != b"take_back" or item,
    }
    damaged = None
    if missing := [field for field, found in readable.items() if not found]:
        why = f"entry {stream_id.decode()} has no {' and no '.join(missing)} that can be read"
        damaged = StoreDamaged(shown_key(key), why)
    return Command(
        stream_id.decode(),
        name.decode("ascii", "replace"),
        kind.decode("ascii", "replace"),  # type: ignore[arg-type]  # unknown kinds pass through
        int(epoch) if epoch.isdigit() else 0,
        user,
        # Of a service that does not say it the time of the command, which was sent after.
        (int(at) if at.isdigit() else 0) or int(stream_id.partition(b"-")[0]),
        item,
        fields.get(b"ends", b""),
        damaged,
    )
