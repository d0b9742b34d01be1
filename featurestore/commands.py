"""skeleton"""

from dataclasses import dataclass, field
from typing import Literal

CommandKind = Literal["refit", "epoch", "erase"]


@dataclass(frozen=True, slots=True)
class Command:
    """One thing asked of the trainer. `stream_id` places it in the stream; `user` is set for `erase`, `epoch` always."""

    stream_id: str
    id: str
    kind: CommandKind
    epoch: int
    user: bytes | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """skeleton"""

    state: Literal["running", "done", "failed"]
    generation: int | None = None
    code: str | None = None
    detail: str | None = None


class Commands:
    """skeleton"""

    async def ask(self, kind: CommandKind, *, epoch: int, user: bytes | None = None) -> str:
        raise NotImplementedError

    async def outcome(self, command_id: str) -> Outcome | None:
        raise NotImplementedError

    async def wait(self, command_id: str, timeout_s: float) -> Outcome | None:
        """The outcome once it is `done` or `failed`; after `timeout_s` whatever there is (None: nobody took it)."""
        raise NotImplementedError

    async def take(self, after: str, block_ms: int) -> list[Command]:
        raise NotImplementedError

    async def report(self, command_id: str, outcome: Outcome) -> None:
        raise NotImplementedError

    async def drop(self, upto: str) -> None:
        """Remove commands up to and including `upto` from the stream: they have their outcome."""
        raise NotImplementedError
