"""The server-side functions as calls. Invariant: a call is answered by the functions of this version of the
package.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from featurestore.wire.connection import Connection
from featurestore.wire.resp import ReplyError, encode, keys_of, note_keys

_TEXT = Path(__file__).with_name("functions.lua").read_text("utf-8")
# The name carries a hash of the text, so that two versions live side by side during a rolling update.
LIBRARY = f"foldin_{hashlib.sha256(_TEXT.encode()).hexdigest()[:12]}"
LIBRARY_TEXT = f"#!lua name={LIBRARY}\n{_TEXT.replace('@LIBRARY@', LIBRARY)}"


def encode_call(function: str, keys: Sequence[bytes], args: Sequence[bytes]) -> bytes:
    """A call of a function, as RESP."""
    # They write nothing: `FCALL_RO` runs where a user may only read.
    command = b"FCALL_RO" if function in ("look", "look_at") else b"FCALL"
    return encode(command, f"{LIBRARY}_{function}".encode(), b"%d" % len(keys), *keys, *args)


def encode_packed_call(
    function: str, n_keys: int, keys: Sequence[bytes], n_args: int, args: Sequence[bytes]
) -> bytes:
    """The same for keys and arguments that are RESP already, several in one piece perhaps. For calls with
    thousands of both, and functions that write.
    """
    head = (b"FCALL", f"{LIBRARY}_{function}".encode(), b"%d" % n_keys)
    packed = [b"$%d\r\n%b\r\n" % (len(part), part) for part in head]
    return b"".join((b"*%d\r\n" % (3 + n_keys + n_args), *packed, *keys, *args))


def is_missing(reply: object) -> bool:
    """Whether a reply says that the store does not have the function."""
    # The code is ERR, as of any other mistake: Redis and Valkey tell this one by its text alone.
    return isinstance(reply, Exception) and "Function not found" in str(reply)


async def ask_many(connection: Connection, calls: Sequence[bytes]) -> list[Any]:
    """Replies of commands, each as RESP, sent in one write; errors as values."""
    replies: list[Any] = await connection.execute_calls(calls)
    missing = [position for position, reply in enumerate(replies) if is_missing(reply)]
    if missing:
        # A store may have lost the library: restarted without it, failed over, flushed. The calls are
        # repeated, because a function that was not found has done nothing.
        await connection.load_library()
        again = await connection.execute_calls([calls[position] for position in missing])
        for position, reply in zip(missing, again, strict=True):
            replies[position] = reply
    for call, reply in zip(calls, replies, strict=True):
        if isinstance(reply, ReplyError):
            note_keys(reply, keys_of(call))
    return replies


async def call_many(connection: Connection, calls: Sequence[bytes]) -> list[Any]:
    """The same; after all are answered an error reply raises."""
    replies = await ask_many(connection, calls)
    for reply in replies:
        if isinstance(reply, ReplyError):
            raise connection.failure(reply)
    return replies
