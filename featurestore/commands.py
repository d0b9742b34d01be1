"""What services ask of the trainer, and what came of it. Invariant: every leader sees a command until it has
an outcome, whichever process dies.
"""

import asyncio
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import msgspec

from featurestore.client import Client
from featurestore.errors import StoreError
from featurestore.keys import Keys
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
]
FAILURE_CODES: frozenset[str] = frozenset(get_args(FailureCode))
"""Why the trainer did not do what was asked: the codes of `Outcome`."""
REFUSALS = frozenset({"fit_refused", "gate_refused"})
"""Those that are for the caller to mend: the same ratings would be refused again."""

# A caller that lost its connection may ask for the outcome for an hour.
OUTCOME_S = 3600
# Bounds the stream: far more than is asked for while a trainer is away.
MOST_COMMANDS = 100_000
# A refit takes seconds: looking twenty times a second adds next to nothing to it.
POLL_S = 0.05
# The store's time at which a user was forgotten, and the user.
_ASKED = re.compile(rb"asked (\d+) (.+)", re.DOTALL)
# The epoch, the store's time, the ends of its streams, and the item.
_TAKE_BACK = re.compile(rb"take_back (\d+) (\d+) (\[[\d,\[\]]*\]) (.+)", re.DOTALL)

Ends = list[tuple[int, int]]
"""Where the stream of each partition ended (ms, number)."""


@dataclass(frozen=True, slots=True)
class Command:
    """One thing asked of the trainer. `stream_id` places it; `user` is set for `erase`, and `at_ms`, the
    store's time when that user was forgotten. For `take_back`, which takes back the ratings of an `item` that
    came in before it was asked for: `at_ms` and where the streams of the `epoch` ended then.
    """

    stream_id: str
    id: str
    kind: CommandKind
    epoch: int
    user: bytes | None
    at_ms: int = 0
    item: bytes | None = None
    ends: bytes = b""

    def stream_ends(self) -> Ends:
        """Return `ends`, by partition. Raises `StoreError`."""
        try:
            return msgspec.json.decode(self.ends, type=Ends)
        except msgspec.MsgspecError as exc:
            raise StoreError("it cannot be read where the streams ended when this was asked") from exc


@dataclass(frozen=True, slots=True)
class Outcome:
    """How far a command has come. `code` is one of `FAILURE_CODES` (a trainer of another version may have
    more), `detail` is for people.
    """

    state: Literal["running", "done", "failed"]
    generation: int | None = None
    code: str | None = None
    detail: str | None = None


class Commands:
    """Both ends of the commands. `block_s`: how long the store may block on one call: well below the timeout
    of a socket.
    """

    def __init__(self, keys: Keys, client: Client, block_s: float) -> None:
        self._keys = keys
        self._client = client
        self._block_ms = max(1, int(1000 * block_s))

    async def ask(self, kind: CommandKind, *, epoch: int, user: bytes | None = None, at_ms: int = 0) -> str:
        """Ask, and return the id under which the outcome will be. Asking twice does it twice."""
        stage = b"asked %d %b" % (at_ms, user or b"") if kind == "erase" else b""
        return await self._ask(kind, epoch, stage, b"user", user or b"", b"at", b"%d" % at_ms)

    async def ask_to_take_back(self, item: bytes, *, epoch: int, at_ms: int, ends: Ends) -> str:
        """Ask for the ratings of an item to be taken back; see `Command`. Asking twice is harmless."""
        packed = msgspec.json.encode(ends)
        stage = b"take_back %d %d %b %b" % (epoch, at_ms, packed, item)
        fields = b"at", b"%d" % at_ms, b"item", item, b"ends", packed
        return await self._ask("take_back", epoch, stage, *fields)

    async def _ask(self, kind: CommandKind, epoch: int, stage: bytes, *fields: bytes) -> str:
        command_id = uuid.uuid4().hex
        first = [b"id", command_id.encode(), b"kind", kind.encode(), b"epoch", b"%d" % epoch]
        # With a stage its receipt is good until it has ended, however long that takes.
        keys = [self._keys.commands, *([self._keys.erasing] if stage else [])]
        await self._client.call("ask", (keys, [b"%d" % MOST_COMMANDS, stage, *first, *fields]))
        return command_id

    async def outcome(self, command_id: str) -> Outcome | None:
        """Return the outcome so far; None before a trainer took the command, and an hour after its end."""
        text = await self._client.get(self._keys.command(command_id))
        if text is None:
            return None
        try:
            return msgspec.json.decode(text, type=Outcome)
        except msgspec.MsgspecError as exc:
            raise StoreError(f"the outcome of command {command_id} cannot be read") from exc

    async def wait(self, command_id: str, timeout_s: float) -> Outcome | None:
        """Return the outcome once it is `done` or `failed`; after `timeout_s` the outcome so far."""
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout_s
        while True:
            outcome = await self.outcome(command_id)
            if (outcome is not None and outcome.state != "running") or loop.time() >= end:
                return outcome
            await asyncio.sleep(POLL_S)

    async def take(self, after: str, block_ms: int) -> list[Command]:
        """Return commands that came after stream id `after` (`0`: all that are left), waiting for the first.

        Entries of a kind that this version does not know come too, as any other: the caller reports them
        failed.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + block_ms / 1000
        while True:
            left_ms = int(1000 * (end - loop.time()))
            block = min(left_ms, self._block_ms) if left_ms > 0 else None
            found: Any = await self._client.xread({self._keys.commands: after}, count=1000, block=block)
            if found or block is None:
                return [_command(stream_id, fields) for _, entries in found for stream_id, fields in entries]

    async def report(self, lease: Lease, command_id: str, outcome: Outcome) -> None:
        """Store how far a command has come. Raises `LeaseLost`: what the next leader says stays."""
        keys = [self._keys.live, self._keys.command(command_id), self._keys.erasing]
        args = [b"%d" % lease.fence, msgspec.json.encode(outcome), b"%d" % OUTCOME_S]
        if outcome.state != "running":
            args.append(command_id.encode())
        await self._client.call("report", (keys, args))

    async def erasing(self) -> list[Command]:
        """Return the erasures that have not ended and whose commands are gone: `user` is None where only the
        store's own files are left to be written anew. Those of an item's ratings likewise.
        """
        found: dict[Any, Any] = await self._client.hgetall(self._keys.erasing)
        # After the hash: what is asked meanwhile is in neither.
        after = "0"
        in_stream: set[bytes] = set()
        while found and (commands := await self.take(after, 0)):
            after = commands[-1].stream_id
            in_stream.update(command.id.encode() for command in commands)
        left = []
        for command_id, stage in found.items():
            # A trainer of 0.1.0 says `done` after its part, or that it cannot do what is asked, and drops the
            # command; it does not know this hash.
            asked, name = _ASKED.fullmatch(stage), command_id.decode()
            if stage == b"files" or (asked and command_id not in in_stream):
                user, at_ms = (asked[2], int(asked[1])) if asked else (None, 0)
                left.append(Command("0-0", name, "erase", 0, user, at_ms))
            elif (of_item := _TAKE_BACK.fullmatch(stage)) and command_id not in in_stream:
                epoch, at_ms = int(of_item[1]), int(of_item[2])
                left.append(Command("0-0", name, "take_back", epoch, None, at_ms, of_item[4], of_item[3]))
        return left

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

    async def drop(self, upto: str) -> None:
        """Remove commands up to and including stream id `upto`: they have their outcome."""
        # `MINID` keeps the entry that it names.
        ms, _, seq = upto.partition("-")
        first = f"{ms}-{int(seq or 0) + 1}"
        await self._client.xtrim(self._keys.commands, minid=first, approximate=False)


def _command(stream_id: bytes, fields: Mapping[bytes, bytes]) -> Command:
    kind: CommandKind = fields.get(b"kind", b"").decode()  # type: ignore[assignment]  # unknown kinds pass through
    user = fields.get(b"user") or None
    epoch, at_ms = fields.get(b"epoch", b"0"), fields.get(b"at", b"0")
    return Command(
        stream_id.decode(),
        fields.get(b"id", b"").decode(),
        kind,
        int(epoch) if epoch.isdigit() else 0,
        user,
        # Of a service that does not say it the time of the command, which was sent after.
        int(at_ms) or int(stream_id.partition(b"-")[0]),
        fields.get(b"item") or None,
        fields.get(b"ends", b""),
    )
