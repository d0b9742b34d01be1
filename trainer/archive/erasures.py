"""The ledger of erasures: who was forgotten, and when. Invariant: a record is on disk before the ratings of
its user are gone, and none ever leaves the ledger, so that no older copy of ratings brings a user back.

A file has a header and records of 32 bytes: a digest of the user's id under the random key in the header, and
the store's time. An archive and a backup may have several files: a restore takes those of its source over.
"""

import contextlib
import secrets
import struct
import threading
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np
import numpy.typing as npt

from factors import Int64s
from trainer import log
from trainer.archive.files import append, write_whole
from trainer.archive.segments import Guard
from trainer.errors import LedgerDamagedError, archive_errors, other_format

FILES = "erasures-*.log"
# Grows when a ledger of today could not be read by an older trainer.
FORMAT = 1
_MAGIC = b"erasures"
# Magic, format, key; digest, milliseconds by the store's clock, zero. The CRC-32 of each follows it.
_HEADER, _RECORD = struct.Struct("<8sI16s"), struct.Struct("<16sqI")
# Of a header and of a record, their checksums included.
_SIZE = 32
# A disk loses no less at once. Records begin at multiples of their size, so that none lies in two.
_SECTOR = 512


@dataclass(frozen=True, slots=True)
class Ledger:
    """The records of one file. `digests` (m,) of 16 bytes, ascending, each once; `at_ms` int64 (m,): when the
    user was last erased. `content`: the file, up to the end of its last record.
    """

    content: bytes
    key: bytes
    digests: npt.NDArray[np.bytes_]
    at_ms: Int64s

    def __len__(self) -> int:
        return len(self.digests)

    def erased_at(self, user_ids: Sequence[bytes]) -> Int64s:
        """Return when each user was last erased, in milliseconds by the store's clock; 0 where never."""
        digests = b"".join([_digest(self.key, user_id) for user_id in user_ids])
        return self._at(np.frombuffer(digests, dtype="S16"))

    def has_all_of(self, other: "Ledger") -> bool:
        """Say whether every erasure of `other` is here, too."""
        return not len(other) or (
            self.key == other.key and bool((self._at(other.digests) >= other.at_ms).all())
        )

    def _at(self, digests: npt.NDArray[np.bytes_]) -> Int64s:
        if not len(self):
            return np.zeros(len(digests), dtype=np.int64)
        place = np.minimum(np.searchsorted(self.digests, digests), len(self) - 1)
        return np.where(self.digests[place] == digests, self.at_ms[place], 0)


class Erasures:
    """The ledger of an archive, to add to. Blocking: call in a thread."""

    def __init__(self, folder: Path, *, guard: Guard) -> None:
        self._folder = folder
        self._guard = guard
        self._path: Path | None = None
        self._key = b""
        self._adding = threading.Lock()

    def add(self, erased: Iterable[tuple[bytes, int]]) -> None:
        """Note users with the time of their erasure in milliseconds by the store's clock; on disk when this
        returns. Repeating is safe.

        Raises `ArchiveFailedError` and what the guard raises.
        """
        with archive_errors(f"write {self._folder}"), self._adding:
            try:
                path = self._path = self._path or self._open()
                records = [_RECORD.pack(_digest(self._key, user_id), at_ms, 0) for user_id, at_ms in erased]
                self._guard()
                append(path, b"".join(map(_with_crc, records)))
            except OSError:
                # Part of a record may be there now: what comes next would stand askew behind it.
                self._path = None
                raise

    def _open(self) -> Path:
        """Return the file to add to. Raises OSError."""
        for path in sorted(self._folder.glob(FILES)):
            content = path.read_bytes()
            try:
                self._key = _key_of(path, content)
            except LedgerDamagedError:
                # It stays, for a person; what comes from now on goes to another.
                log.warning("ledger_damaged", file=path.name)
                continue
            # A part of a record, or zeros, as a power cut leaves them, were never told of. They stay, too:
            # nothing that was told of can be cut off by mistake.
            if len(content) % _SIZE == 0 and content[-_SIZE:] != bytes(_SIZE):
                return path
        self._key = secrets.token_bytes(16)
        path = self._folder / FILES.replace("*", secrets.token_hex(4))
        write_whole(path, _with_crc(_HEADER.pack(_MAGIC, FORMAT, self._key)))
        return path


def ledger_files(folder: Path) -> list[Path]:
    """Return the files of the ledger in a folder. Raises OSError."""
    return sorted(folder.glob(FILES))


def put_ledger(folder: Path, content: bytes) -> None:
    """Add a file to the ledger of an archive that another process may write to. Raises OSError."""
    # A file of its own: the trainer adds to one of those that are there.
    name = FILES.replace("*", secrets.token_hex(4))
    write_whole(folder / name, content)


def require_known(folder: Path) -> None:
    """Raise `ArchiveRefusedError` where a file of the ledger is of a newer format. One that cannot be read
    keeps no trainer from leading: nothing is added beside it, and erasures wait.
    """
    for path in ledger_files(folder):
        with contextlib.suppress(LedgerDamagedError, OSError), path.open("rb") as file:
            _key_of(path, file.read(_SIZE))


def parse_ledger(path: Path, content: bytes, *, skip_damaged: bool = False) -> Ledger:
    """Return the records in the content of a file, but for a part of one at its end, or zeros there, which
    were never told of. `skip_damaged`: those that can be read.

    Raises `LedgerDamagedError`, or `ArchiveRefusedError` for a format newer than this version's.
    """
    key = _key_of(path, content)
    end = _end_of(content)
    records = [content[at : at + _SIZE] for at in range(_SIZE, end, _SIZE)]
    whole = [record for record in records if _is_whole(record)]
    if len(whole) < len(records) and not skip_damaged:
        raise LedgerDamagedError(path)
    found = np.frombuffer(
        b"".join(whole), dtype=[("digest", "S16"), ("at_ms", "<i8"), ("unused", "<u4"), ("crc", "<u4")]
    )
    # Of a user who was erased more than once the last time.
    found = found[np.lexsort((found["at_ms"], found["digest"]))]
    last = np.append(found["digest"][1:] != found["digest"][:-1], True)[: len(found)]
    return Ledger(content[:end], key, found["digest"][last], found["at_ms"][last].astype(np.int64))


def _end_of(content: bytes) -> int:
    """Return where the last record ends that may have been told of.

    A power cut may leave a file longer than what was written into it: zeros from where it ended, to its end.
    Such a record was not synced, and no caller was told of its erasure. Where zeros begin with a sector they
    may as well be one that the disk has lost, with records that were synced: these count, and are damaged.
    """
    end = len(content) - len(content) % _SIZE
    zeros = end
    while zeros > _SIZE and content[zeros - _SIZE : zeros] == bytes(_SIZE):
        zeros -= _SIZE
    return end if zeros % _SECTOR == 0 else zeros


def readable_ledgers(folder: Path) -> list[Ledger]:
    """Return what fits its checksums of the ledger in a folder. Raises `ArchiveRefusedError`,
    `ArchiveFailedError`.
    """
    found = []
    with archive_errors(f"read the ledger in {folder}"):
        contents = [(path, path.read_bytes()) for path in ledger_files(folder)]
    for path, content in contents:
        try:
            found.append(parse_ledger(path, content))
        except LedgerDamagedError:
            log.warning("ledger_damaged", file=path.name)
            with contextlib.suppress(LedgerDamagedError):
                found.append(parse_ledger(path, content, skip_damaged=True))
    return found


def _key_of(path: Path, content: bytes) -> bytes:
    header = content[:_SIZE]
    if len(header) < _SIZE or not header.startswith(_MAGIC):
        raise LedgerDamagedError(path)
    # The format first: what follows it may be otherwise in a newer one.
    _, number, key = _HEADER.unpack(header[:-4])
    if number != FORMAT and (number > FORMAT or _is_whole(header)):
        raise other_format(path, number, FORMAT)
    if not _is_whole(header):
        raise LedgerDamagedError(path)
    return bytes(key)


def _with_crc(content: bytes) -> bytes:
    return content + struct.pack("<I", zlib.crc32(content))


def _is_whole(record: bytes) -> bool:
    return _with_crc(record[:-4]) == record


def _digest(key: bytes, user_id: bytes) -> bytes:
    return blake2b(user_id, digest_size=16, key=key).digest()
