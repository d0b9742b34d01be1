"""Rows of a long list, packed into bodies that one call may have.

Invariant: rows go out in the order in which they were given, each once.
"""

from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Mapping
from typing import Any, TypeAlias, TypeVar

import msgspec

R = TypeVar("R")
# What the service takes in one call.
MAX_ROWS = 10_000
# It takes 10 MB; a proxy may count less of it.
MAX_BYTES = 8_000_000
# What answers count.
_COUNTS = ("accepted", "still_deleted")
# A struct, an object, or a line of JSON that is sent as it stands: of a file no line is parsed in vain.
Row = msgspec.Struct | Mapping[str, Any] | bytes
Rows: TypeAlias = Iterable[R | Mapping[str, Any] | bytes] | R | Mapping[str, Any]
AsyncRows: TypeAlias = AsyncIterable[R | Mapping[str, Any] | bytes] | Rows[R]


def line(row: Row) -> bytes:
    """Return a row as one line of JSON, empty for a line that is blank."""
    if isinstance(row, bytes):
        return row.strip()
    # Line breaks inside texts are escaped in JSON.
    return msgspec.json.encode(row)


def each(rows: Any) -> Iterator[Row]:
    """Yield the rows of a list, or the one that is given alone."""
    if isinstance(rows, msgspec.Struct | Mapping):
        yield rows
    elif isinstance(rows, str | bytes):
        # Both could be iterated, by letter or by number.
        raise TypeError(
            "rows are structs, objects or lines as bytes: open a file in binary mode for its lines"
        )
    else:
        yield from rows


async def aeach(rows: Any) -> AsyncIterator[Row]:
    """Yield as `each` does, also of what is asynchronous."""
    if isinstance(rows, AsyncIterable):
        async for row in rows:
            yield row
    else:
        for row in each(rows):
            yield row


class Packer:
    """Packs lines into a body."""

    def __init__(self) -> None:
        self._lines: list[bytes] = []
        self._bytes = 0
        self._given = 0
        # Where the lines that wait, and those that were taken last, stand among all that were given.
        self._places: list[int] = []
        self._taken: list[int] = []

    @property
    def count(self) -> int:
        """Rows that wait."""
        return len(self._lines)

    def is_full_with(self, line: bytes) -> bool:
        """Whether what waits is to be sent before another line is added."""
        if not self._lines:
            return False
        return len(self._lines) >= MAX_ROWS or self._bytes + len(line) + 1 > MAX_BYTES

    def add(self, line: bytes) -> None:
        """Add a line; a blank one is none."""
        if line:
            self._lines.append(line)
            self._bytes += len(line) + 1
            self._places.append(self._given)
        self._given += 1

    def place(self, row: int) -> int:
        """Return where a row of the body that was taken last stands among all that were given."""
        return self._taken[row] if 0 <= row < len(self._taken) else row

    def take(self) -> bytes:
        """Return what waits as one body, and begin another."""
        body = b"\n".join(self._lines) + b"\n"
        self._lines, self._bytes = [], 0
        self._taken, self._places = self._places, []
        return body


def counted(answer: Any) -> int:
    """Return how many rows an answer says were accepted."""
    accepted: int = answer.accepted
    return accepted


def together(before: R, answer: R) -> R:
    """Return an answer for several calls together: the last one, with the counts of all."""
    names = [name for name in _COUNTS if hasattr(answer, name)]
    counts = {name: getattr(before, name) + getattr(answer, name) for name in names}
    changed: Any = msgspec.structs.replace(answer, **counts)  # type: ignore[type-var]  # all are structs
    whole: R = changed
    return whole
