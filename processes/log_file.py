"""Log files that cannot fill a disk.

One part of the stack writes to one file, which is renamed to `.1` when it is full.
"""

from io import FileIO
from pathlib import Path

# Days of a quiet stack, hours of one that complains; a few parts with two files each stay far under 100 MB.
MAX_BYTES = 8 * 1024 * 1024


class BoundedLog:
    """Appends bytes to `path`; never holds more than two files of `max_bytes` (and one write).

    A disk that is full costs log lines, never the part that wrote them: what cannot be written is dropped,
    and a file that cannot be opened is tried again with the next line.
    """

    def __init__(self, path: Path, max_bytes: int = MAX_BYTES) -> None:
        self.path = path
        self._max_bytes = max_bytes
        self._file: FileIO | None = None
        self._size = 0
        self._closed = False

    def write(self, data: bytes) -> None:
        """Append `data`, starting a new file when this one is full."""
        if self._closed:
            return
        try:
            if self._file is not None and self._size > 0 and self._size + len(data) > self._max_bytes:
                self._file.close()
                self._file = None
                self.path.replace(self.path.with_name(self.path.name + ".1"))
            if self._file is None:
                # Unbuffered: the last line of a part that is killed is the one that is wanted.
                self._file = FileIO(self.path, "ab")
                self._size = self._file.tell()
            self._file.write(data)
            self._size += len(data)
        except OSError:
            return

    def close(self) -> None:
        """Close the file. Writes after that are dropped."""
        self._closed = True
        if self._file is not None:
            self._file.close()
