"""Everything that can keep a stack from starting, tried before anything is started.

Each check raises CannotStartError with one line that says what to do, so that a refused start leaves nothing
running.
"""

import contextlib
import errno
import fcntl
import ipaddress
import os
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from processes.errors import CannotStartError

# An append-only file is rewritten beside the old one when it has doubled, from 64 MB on: less room than that
# and the first rewrite fails.
ROOM_BYTES = 64 * 1024 * 1024
# A store that found no room ends. It starts again when there is enough to go on for a while.
RESTART_BYTES = 16 * 1024 * 1024
# The parts of a supervisor that was killed stop by themselves, within their grace: the trainer's is 10 s.
ORPHANS_GONE_S = 12.0


def data_directory(path: Path) -> Path:
    """Make the data directory with `logs` and `store`, prove that it can be written; return it resolved.

    A new one is open to this user alone: it has what all users of the API have told.
    """
    resolved = path.expanduser().resolve()
    try:
        resolved.mkdir(mode=0o700, parents=True, exist_ok=True)
        for folder in (resolved / "logs", resolved / "store"):
            folder.mkdir(exist_ok=True)
        _room(resolved / f".room-{os.getpid()}", ROOM_BYTES)
    except OSError as exc:
        if exc.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise CannotStartError(
                f"the disk under {resolved} is full: make {ROOM_BYTES // 2**20} MB of room, or choose "
                "another place with --data"
            ) from exc
        raise CannotStartError(
            f"the data directory {resolved} cannot be written ({exc.strerror}): choose another with --data"
        ) from exc
    return resolved


def full_disk(folder: Path) -> str | None:
    """Return one line about a disk without RESTART_BYTES of room; None where there is that much."""
    try:
        _room(folder / f".room-{os.getpid()}", RESTART_BYTES)
    except OSError as exc:
        if exc.errno in {errno.ENOSPC, errno.EDQUOT}:
            return f"the disk under {folder} is full; make room, it starts again by itself"
        return f"{folder} cannot be written ({exc.strerror}); it starts again by itself"
    return None


def _room(probe: Path, size: int) -> None:
    """Reserve `size` bytes for a moment: unlike a look at free blocks this sees quotas, too."""
    descriptor = os.open(probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(descriptor, 0, size)
        elif os.fstatvfs(descriptor).f_bavail * os.fstatvfs(descriptor).f_frsize < size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    finally:
        os.close(descriptor)
        probe.unlink()


def require_free_port(host: str, port: int, flag: str) -> None:
    """Refuse a port that is listened on, an address that is not this machine's, and a privileged port.

    The probe binds without SO_REUSEPORT, so that it fails beside a server whose workers share one port.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            # As servers do: connections of an earlier run that linger in TIME_WAIT are no obstacle.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen(1)
    except OSError as exc:
        if exc.errno == errno.EADDRINUSE:
            raise CannotStartError(
                f"port {port} on {host} is in use: stop what listens there, or choose another with {flag}"
            ) from exc
        if exc.errno in {errno.EACCES, errno.EPERM}:
            raise CannotStartError(
                f"port {port} needs more rights than this user has: choose one above 1023 with {flag}"
            ) from exc
        raise CannotStartError(
            f"cannot listen on {host}:{port} ({exc.strerror}): choose an address of this machine with --host"
        ) from exc


def reaches_beyond(host: str) -> bool:
    """Whether other machines can reach what listens on `host`: by the address that it will be bound to."""
    found = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return not ipaddress.ip_address(str(found[0][4][0]).partition("%")[0]).is_loopback


@contextlib.contextmanager
def locked(data: Path, orphans_gone_s: float = ORPHANS_GONE_S) -> Iterator[tuple[int, ...]]:
    """Hold the data directory for one stack; yield the descriptors that carry the lock.

    Every part inherits them. So after a supervisor was killed the directory stays locked until its parts are
    gone: two stores never append to one file, and no port is still held. Such orphans end by themselves, and
    are waited for. Not the file `lock` alone: a person may take it for a leftover, and remove it.
    """
    try:
        held = [os.open(data / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)]
    except OSError as exc:
        # As of a stack that another user ran there.
        raise CannotStartError(
            f"{data / 'lock'} cannot be opened ({exc.strerror}): make {data} yours, or choose another "
            "directory with --data"
        ) from exc
    try:
        held.append(os.open(data, os.O_RDONLY | os.O_CLOEXEC))
        deadline = time.monotonic() + orphans_gone_s
        while not all([_try_lock(descriptor, fcntl.LOCK_EX) for descriptor in held]):
            owner = os.pread(held[0], 20, 0).decode("ascii", "replace").strip()
            if _alive(owner) or time.monotonic() > deadline:
                raise CannotStartError(
                    f"{data} is in use by another stack (process {owner or 'unknown'}): stop it, "
                    "or choose another directory with --data"
                )
            time.sleep(0.1)
        # For the message that another stack prints.
        os.truncate(held[0], 0)
        os.pwrite(held[0], f"{os.getpid()}\n".encode(), 0)
        yield tuple(held)
    finally:
        for descriptor in held:
            os.close(descriptor)


def is_locked(data: Path) -> bool:
    """Say whether a stack holds the data directory; that of a copy of one that is held is not."""
    for path in (data / "lock", data):
        with contextlib.suppress(OSError):
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                if not _try_lock(descriptor, fcntl.LOCK_SH):
                    return True
            finally:
                os.close(descriptor)
    return False


def _try_lock(descriptor: int, kind: int) -> bool:
    """Say whether no other process keeps this one from the lock."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as exc:
        # Some file systems lock files alone.
        return stat.S_ISDIR(os.fstat(descriptor).st_mode) or exc.errno == errno.ENOLCK
    return True


def _alive(process: str) -> bool:
    if not process.isdigit():
        return False
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it is there, and belongs to another user
        return True
    return True
