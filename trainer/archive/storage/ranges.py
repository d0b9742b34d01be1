"""An object as a file that is read where it is needed: of a segment the footer, then the columns that are
asked for. Invariant: what is read is of one object, which never changes; one that is gone raises
FileNotFoundError with its name.
"""

import io
from typing import TYPE_CHECKING

import pyarrow as pa

if TYPE_CHECKING:
    from trainer.archive.storage.client import ObjectClient

# A footer, or all of a small segment: less than what a request costs in time.
TAIL_BYTES = 65_536


class RangeFile(io.RawIOBase):
    """An object of a known size, by requests of ranges."""

    def __init__(self, client: "ObjectClient", name: str, size: int) -> None:
        super().__init__()
        self._client = client
        self._name = name
        self._size = size
        self._at = 0

    @classmethod
    def opened(cls, client: "ObjectClient", name: str, size: int) -> pa.NativeFile:
        """Return an object as Arrow reads files."""
        return pa.PythonFile(cls(client, name, size), mode="r")

    def readable(self) -> bool:
        """As `io` has it."""
        return True

    def seekable(self) -> bool:
        """As `io` has it."""
        return True

    def tell(self) -> int:
        """As `io` has it."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """As `io` has it."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = start + offset
        return self._at

    def read(self, size: int = -1) -> bytes:
        """As `io` has it."""
        end = self._size if size < 0 else min(self._at + size, self._size)
        start, self._at = self._at, max(self._at, end)
        if end <= start:
            return b""
        tail_at = max(0, self._size - TAIL_BYTES)
        try:
            if start >= tail_at:
                return self._client.tail(self._name, self._size)[start - tail_at : end - tail_at]
            return self._client.read(self._name, start, end - start)
        except FileNotFoundError as exc:
            # Of many that are copied side by side: which one.
            raise FileNotFoundError(exc.errno, exc.strerror, self._name) from None
