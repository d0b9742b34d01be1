"""RESP, the protocol of the store: commands as bytes, where replies end, what error replies mean.

Invariant: nothing here reads or writes a socket.
"""

from collections.abc import Sequence
from typing import Protocol

import hiredis

from featurestore.errors import (
    FullReason,
    LeaseLost,
    StoreDamaged,
    StoreError,
    StoreFull,
    StoreRefused,
    StoreUnavailable,
)
from featurestore.keys import shown_keys

ReplyError = hiredis.ReplyError

# What the store cannot do now it may do later: it loads, runs a script, or is a replica whose master is away.
_UNAVAILABLE = frozenset(
    {"LOADING", "MASTERDOWN", "READONLY", "BUSY", "NOREPLICAS", "CLUSTERDOWN", "TRYAGAIN"}
)
# MISCONF: its last write to its files failed, for lack of room in nearly all cases.
_FULL: dict[str, FullReason] = {"OOM": "store_memory", "MISCONF": "store_disk"}
# For a person to change: a password, a permission, or the address, which is that of a cluster.
_REFUSED = frozenset({"NOAUTH", "WRONGPASS", "NOPERM", "DENIED", "MOVED", "ASK", "CROSSSLOT"})
# What a key of another type gives, a field that is no number, and a function that has met either.
_DAMAGED = ("WRONGTYPE", "is not an integer", "is not a float", "on @user_function")
# The server on the other end may have become a replica, or is not the one to ask: look for it anew.
ELSEWHERE = frozenset({"READONLY", "LOADING", "MASTERDOWN"})


class UnusualReplies(Exception):  # noqa: N818 - says what happened
    """A `RepliesReader` leaves the replies to the usual one; `data` is all that it was given."""

    def __init__(self, data: bytes) -> None:
        super().__init__("replies in another form than the usual one")
        self.data = data


class RepliesReader(Protocol):
    """Reads the replies of one call out of the bytes, as a whole. It is asked for its `room` only while more
    is to come.
    """

    @property
    def room(self) -> memoryview:
        """Where the bytes that come next belong; never empty."""

    def took(self, count: int) -> bytes | None:
        """`count` bytes have come there: what lies behind the last reply, or None while more is to come.

        Raises `UnusualReplies`.
        """


def encode(*args: bytes) -> bytes:
    """A command as RESP."""
    return b"*%d\r\n%b" % (len(args), b"".join([b"$%d\r\n%b\r\n" % (len(arg), arg) for arg in args]))


def end_of_replies(data: bytes, count: int) -> int:
    """Where the first `count` replies in `data` end; its length where they do not, or are no RESP2."""
    # Only so far is the usual reader fed where another reads what follows: hiredis gives nothing back.
    at = 0
    while count and (stop := data.find(b"\r\n", at)) >= 0:
        kind, text = data[at : at + 1], data[at + 1 : stop]
        at = stop + 2
        count -= 1
        if kind in (b"$", b"*"):
            if not text.removeprefix(b"-").isdigit():
                break
            size = int(text)
            if kind == b"*":
                count += max(size, 0)
            elif size >= 0:
                at += size + 2
        elif kind not in (b"+", b"-", b":"):
            break
    else:
        return at if count == 0 and at <= len(data) else len(data)
    return len(data)


def by_field(reply: Sequence[bytes]) -> dict[bytes, bytes]:
    """A hash from a reply that has its fields and values by turns."""
    return dict(zip(reply[::2], reply[1::2], strict=True))


def bulk(value: bytes) -> bytes:
    """An argument as RESP."""
    return b"$%d\r\n%b\r\n" % (len(value), value)


def error_code(reply: Exception) -> str:
    """The first word of an error reply."""
    return str(reply).partition(" ")[0]


def store_error(reply: Exception) -> StoreError:
    """What an error reply means for the caller."""
    text, code = str(reply), error_code(reply)
    # Functions of the store say this themselves.
    if code == "LOST":
        return LeaseLost(text.removeprefix("LOST "))
    if code in _FULL:
        return StoreFull(f"the store cannot do this now: {text}", _FULL[code])
    if code in _UNAVAILABLE or "max number of clients" in text:
        return StoreUnavailable(f"the store cannot do this now: {text}")
    if code in _REFUSED:
        return StoreRefused(f"the store refuses: {text}")
    if any(sign in text for sign in _DAMAGED):
        keys = " ".join(getattr(reply, "__notes__", ()))
        return StoreDamaged(keys or "a key", f"unexpected reply of the store: {text}")
    return StoreError(f"unexpected reply of the store: {text}")


def note_keys(reply: Exception, keys: Sequence[bytes]) -> None:
    """Keep with an error reply which keys its call had, for `store_error`."""
    reply.add_note(shown_keys(keys))


def keys_of(call: bytes) -> list[bytes]:
    """Return the keys of a command as RESP: those of a function, or the first argument."""
    reader = hiredis.Reader()
    reader.feed(call)
    parts: list[bytes] = reader.gets()
    name, *rest = parts
    return rest[2 : 2 + int(rest[1])] if name in {b"FCALL", b"FCALL_RO"} else rest[:1]
