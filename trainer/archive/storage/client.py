"""Calls of an object store. Invariant: whatever goes wrong is an OSError of one line that says what to do and
has no secret in it; nothing is retried for longer than a trainer keeps its lease.
"""

import contextlib
import errno
import io
import re
import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

import pyarrow as pa

from trainer.archive.storage.address import ObjectAddress, ObjectCredentials
from trainer.errors import ArchiveRefusedError

T = TypeVar("T")

_CODE = re.compile(r"<Code>(\w+)</Code>")
# As the library tells of an answer without such a body, which what stands before a store gives.
_STATUS = re.compile(r"status code: (\d{3})")
_BUSY = {"429", "503"}
# Of a bucket in another region the library reads no body.
_REDIRECT = "redirect without LOCATION"
# What the answers of a store mean for who set it up.
_KEYS = (
    "see that AWS_ACCESS_KEY_ID and its secret, or those in AWS_SHARED_CREDENTIALS_FILE, are of the bucket"
)
_REMEDIES = {
    "NoSuchBucket": "there is no such bucket: make it, or name another in FOLDIN_ARCHIVE_DIR",
    "RequestTimeTooSkewed": "the clock of this host is wrong: set it, by NTP",
    "PermanentRedirect": "the bucket is in another region: name it by region= in FOLDIN_ARCHIVE_DIR",
    "AuthorizationHeaderMalformed": "the bucket is in another region: name it by region= in "
    "FOLDIN_ARCHIVE_DIR",
    "InvalidAccessKeyId": f"the key is not known there: {_KEYS}",
    "SignatureDoesNotMatch": f"the secret is not that of the key: {_KEYS}",
    "ExpiredToken": f"the key has expired: {_KEYS}",
    "AccessDenied": f"it refuses this key: {_KEYS}",
    "SlowDown": "it asks to be asked less often: it goes on by itself",
}
# Where a machine of a cloud asks for its role: not this one, or it has none.
_ROLES = re.compile(r"169\.254\.\d+\.\d+")
# A segment of 30 MB at 1 MB/s; what lasts longer is begun again.
_TIMEOUT_S = 30.0
# A store that is there answers in milliseconds.
_CONNECT_S = 3.0
# A lost packet, a server that restarts; what lasts longer is tried again by who asked, with a line.
_RETRIES, _RETRY_S = 2, 5.0

# A footer, or all of a small segment: less than what a request costs in time.
TAIL_BYTES = 65_536
# Of all segments of an epoch the footers, and of its small ones all: 32 MB at most.
_TAILS = 512


class ObjectStoreError(OSError):
    """The store does not answer, or not as it should: try again later. `lasting`: a person must change
    something first.
    """

    def __init__(self, why: str, *, lasting: bool = False) -> None:
        super().__init__(errno.EIO, why)
        self.lasting = lasting

    def __str__(self) -> str:
        return str(self.strerror)


@dataclass(frozen=True, slots=True)
class Listed:
    """An object: its name below the prefix, its size, and when it was put, in seconds since 1970."""

    name: str
    size: int
    at: float


class ObjectClient:
    """Objects below one address. Blocking: call in a thread. Every method raises `ObjectStoreError`."""

    def __init__(self, address: ObjectAddress, credentials: ObjectCredentials) -> None:
        self.address = address
        self._credentials = credentials
        self._known: Any = None
        self._opened: Any = None
        # Of objects that were looked at last: they never change. By name, the newest last.
        self._tails: OrderedDict[str, bytes] = OrderedDict()
        self._keeping = threading.Lock()

    def create(self, name: str, content: bytes) -> bool:
        """Put an object, if there is none of this name; return whether there was none. Where a request was
        repeated its own object may be there already: then it is False, too.
        """
        return self._create(name, content) is not None

    def _create(self, name: str, content: bytes) -> dict[str, Any] | None:
        import obstore
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        try:
            # Whole: parts of an upload would be made one object by a call without the condition.
            made = self._call(
                lambda: obstore.put(self._store(), name, content, mode="create", use_multipart=False)
            )
            return dict(made)
        except (AlreadyExistsError, PreconditionError):
            return None

    def read(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        """Return an object, or a range of it. Raises FileNotFoundError."""
        import obstore

        if length is None:
            return bytes(self._call(lambda: obstore.get(self._store(), name).bytes()))
        return bytes(self._call(lambda: obstore.get_range(self._store(), name, start=start, length=length)))

    def tail(self, name: str, size: int) -> bytes:
        """Return the end of an object of this size, all of a small one. Raises FileNotFoundError."""
        with self._keeping:
            found = self._tails.get(name)
        if found is None:
            length = min(size, TAIL_BYTES)
            found = self.read(name, size - length, length)
            self.keep_tail(name, found)
        return found

    def keep_tail(self, name: str, content: bytes) -> None:
        """Have the end of an object, of which this is the content or its end, without asking for it."""
        with self._keeping:
            self._tails[name] = content[-TAIL_BYTES:]
            while len(self._tails) > _TAILS:
                self._tails.popitem(last=False)

    def listed(self, prefix: str, after: str | None = None) -> list[Listed]:
        """Return the objects below a prefix, in the order of their names. `after`: those that follow this
        name alone.
        """
        import obstore

        def collect() -> list[Listed]:
            pages = obstore.list(self._store(), prefix, offset=after)
            return [
                Listed(str(each["path"]), int(each["size"]), each["last_modified"].timestamp())
                for page in pages
                for each in page
            ]

        return sorted(self._call(collect), key=lambda each: each.name)

    def delete(self, names: Sequence[str]) -> None:
        """Remove objects, those that are gone already included."""
        import obstore

        if names:
            self._call(lambda: obstore.delete(self._store(), list(names)))

    def check(self) -> bool:
        """See that what an archive rests on holds here; return whether the bucket keeps older versions.

        Raises `ArchiveRefusedError` where the store does not do what it answers.
        """
        name = f"probe/{secrets.token_hex(8)}"
        made: dict[str, Any] | None = None
        again: dict[str, Any] | None = None
        there, listed = b"", list[str]()
        with contextlib.suppress(NotImplementedError):
            made, again = self._create(name, b"first"), self._create(name, b"second")
            there, listed = self.read(name), [each.name for each in self.listed("probe")]
            self.delete([name])
        where = f"{self.address} at {self.address.endpoint or 'AWS'}"
        # Not by `made`: a request that was repeated finds its own object.
        if again is not None or there != b"first":
            raise ArchiveRefusedError(
                f"{where} does not honour create-only writes (If-None-Match: *), so that two trainers could "
                "overwrite each other: use a version of it that does, or another store"
            )
        if name not in listed:
            raise ArchiveRefusedError(
                f"{where} does not list at once what was put there: use a store that is strongly consistent"
            )
        return made is not None and made.get("version") is not None

    def _store(self) -> Any:
        known = self._credentials.known(self.address.profile)
        # Keys of a file are changed while a trainer runs.
        if self._opened is None or known != self._known:
            from obstore.store import S3Store

            address = self.address
            told = {"endpoint": address.endpoint, "region": address.region}
            told = {name: value for name, value in told.items() if value is not None}
            limits: Any = {
                "allow_http": (address.endpoint or "").startswith("http://"),
                "timeout": timedelta(seconds=_TIMEOUT_S),
                "connect_timeout": timedelta(seconds=_CONNECT_S),
            }
            retries: Any = {"max_retries": _RETRIES, "retry_timeout": timedelta(seconds=_RETRY_S)}
            self._opened = S3Store(
                address.bucket,
                prefix=address.prefix or None,
                client_options=limits,
                retry_config=retries,
                **told,  # type: ignore[arg-type]  # names of its settings
                **known,  # type: ignore[arg-type]
            )
            self._known = known
        return self._opened

    def _call(self, call: Callable[[], T]) -> T:
        from obstore.exceptions import (
            AlreadyExistsError,
            BaseError,
            NotSupportedError,
            PreconditionError,
        )

        try:
            return call()
        except (AlreadyExistsError, PreconditionError):
            raise
        except NotSupportedError as exc:
            raise NotImplementedError from exc
        except FileNotFoundError as exc:
            if "NoSuchBucket" in str(exc):
                self._raise(str(exc), exc)
            raise FileNotFoundError(errno.ENOENT, "there is no such object") from None
        except (BaseError, OSError) as exc:
            self._raise(str(exc), exc)

    def _raise(self, told: str, exc: Exception) -> NoReturn:
        """Raise the error of a failed call: the body that a store answers may have parts of a key."""
        where = f"{self.address} at {self.address.endpoint or 'AWS'}"
        found = _CODE.search(told)
        code = found.group(1) if found else type(exc).__name__
        answered = _STATUS.search(told)
        status = answered.group(1) if answered else ""
        if _REDIRECT in told:
            code = "PermanentRedirect"
        elif status in _BUSY and code not in _REMEDIES:
            code = "SlowDown"
        if code == "NotImplemented":
            raise NotImplementedError
        if code in _REMEDIES:
            raise ObjectStoreError(f"{where}: {_REMEDIES[code]}", lasting=code != "SlowDown") from None
        if _ROLES.search(told):
            raise ObjectStoreError(
                f"{where}: no key is set, and this machine has no role: {_KEYS}", lasting=True
            ) from None
        if code in {"PermissionDeniedError", "UnauthenticatedError"}:
            raise ObjectStoreError(f"{where}: {_REMEDIES['AccessDenied']}", lasting=True) from None
        if found or status:
            raise ObjectStoreError(
                f"{where} answers {code if found else status}: it is tried again"
            ) from None
        raise ObjectStoreError(
            f"{where} does not answer: see that it runs, and that this host reaches it"
        ) from None


class RangeFile(io.RawIOBase):
    """An object of a known size as a file that is read where it is needed, by requests of ranges: of a
    segment the footer, then the columns that are asked for. What is read is of one object, which never
    changes; one that is gone raises FileNotFoundError with its name.
    """

    def __init__(self, client: ObjectClient, name: str, size: int) -> None:
        super().__init__()
        self._client = client
        self._name = name
        self._size = size
        self._at = 0

    @classmethod
    def opened(cls, client: ObjectClient, name: str, size: int) -> pa.NativeFile:
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
