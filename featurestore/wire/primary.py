"""Where the primary of the store is: at its address, or where its sentinels say. Invariant: of what several
sentinels say, the newest failover counts, and a failover under way is never taken for its end.
"""

import asyncio
import contextlib
import logging
import ssl
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from redis.asyncio.connection import parse_url

from featurestore.errors import StoreRefused, StoreUnavailable
from featurestore.settings import host_and_port, redacted, split_address
from featurestore.wire.resp import ReplyError, encode, error_code, store_error
from featurestore.wire.socket import StoreSocket

log = logging.getLogger(__name__)

# Of a sentinel, unless told otherwise.
SENTINEL_PORT = 26379
# A worker that sleeps between two looks answers from a demoted primary for no longer.
LOOK_S = 0.25
# Every process that reaches a sentinel has heard of the move by then, and reads from the new primary what is
# acknowledged there.
SETTLE_S = 2 * LOOK_S
# A sentinel answers within a millisecond; one that is stopped must not keep the others' answer back.
ANSWER_S = 0.25
# What a sentinel says of a primary that it believes gone, or is about to replace.
_UNSURE = frozenset({b"s_down", b"o_down", b"failover_in_progress"})

Address = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Said:
    """What a sentinel says of the primary. `version` grows with each failover; `sure`: it believes it up, and
    no failover under way.
    """

    version: int
    address: Address
    sure: bool


class Primary:
    """The server that connections go to. `options`: user, password and TLS, as redis-py reads an address.

    Raises ValueError or OSError where an option of the address does not fit, naming it.
    """

    def __init__(self, url: str) -> None:
        self.shown = redacted(url)
        self._sentinels: list[Address] = []
        parts = split_address(url)
        if parts.scheme.endswith("+sentinel"):
            self._sentinels = [host_and_port(host, SENTINEL_PORT) for host in parts.hosts]
            path, mark, options = parts.rest.partition("?")
            self._name, _, number = path.removeprefix("/").partition("/")
            rest = f"/{number}{mark}{options}"
            scheme = parts.scheme.removesuffix("+sentinel")
            url = str(replace(parts, scheme=scheme, hosts=("sentinel",), rest=rest))
        self.options: Mapping[str, Any] = parse_url(url)
        # Each new socket reads the files anew; what is wrong with them is said at the start.
        ssl_context(self.options)
        # Of a store without sentinels it stays so.
        self.address: Address = (self.options.get("host", "127.0.0.1"), self.options.get("port", 6379))
        self._version = -1
        self._sockets: dict[Address, StoreSocket] = {}
        self._asking = asyncio.Lock()
        self._moved: list[Callable[[], None]] = []

    @property
    def followed(self) -> bool:
        """Whether sentinels say where it is."""
        return bool(self._sentinels)

    def on_move(self, moved: Callable[[], None]) -> None:
        """Have `moved` called when the primary is elsewhere from now on."""
        self._moved.append(moved)

    async def find(self) -> None:
        """Ask where the primary is. Raises `StoreUnavailable` where no sentinel tells, `StoreRefused`."""
        if self._sentinels and not await self._ask():
            hosts = ",".join(shown(*sentinel) for sentinel in self._sentinels)
            raise StoreUnavailable(f"no sentinel of {hosts} tells where the primary {self._name!r} is")

    async def is_sure(self) -> bool:
        """Whether most of the sentinels answer, and all that do believe this primary up and no failover under
        way.
        """
        if not self._sentinels:
            return True
        said = await self._ask()
        agreed = all(each.sure and each.address == self.address for each in said)
        return agreed and self._are_most(said)

    async def follow(self) -> None:
        """Look for a move until cancelled."""
        try:
            while True:
                await asyncio.sleep(LOOK_S)
                try:
                    await self._ask()
                except StoreRefused as exc:
                    # A sentinel that was set up anew; the connections that are up go on.
                    log.warning("a sentinel refuses", extra={"why": str(exc)})
        finally:
            self.close()

    def close(self) -> None:
        """Drop the connections to the sentinels."""
        for socket in self._sockets.values():
            socket.give_up(StoreUnavailable("this process has closed its connection to the sentinel"))
        self._sockets.clear()

    async def _ask(self) -> list[Said]:
        """What the sentinels say that answer in time; takes the newest."""
        # One at a time: a sentinel has one connection from here.
        async with self._asking:
            asked = [self._ask_one(*sentinel) for sentinel in self._sentinels]
            answers = await asyncio.gather(*asked, return_exceptions=True)
        said = [each for each in answers if isinstance(each, Said)]
        if not said:
            for answer in answers:
                if isinstance(answer, StoreRefused):
                    raise answer
            return []
        newest = max(said, key=lambda each: each.version)
        # Most of them fall back behind what was known only where they were set up anew.
        if newest.version >= self._version or self._are_most(said):
            self._version = newest.version
            if newest.address != self.address:
                self.address = newest.address
                log.info("the store's primary is at %s:%d", *newest.address)
                for moved in self._moved:
                    moved()
        return said

    def _are_most(self, said: list[Said]) -> bool:
        return 2 * len(said) > len(self._sentinels)

    async def _ask_one(self, host: str, port: int) -> Said:
        async with asyncio.timeout(ANSWER_S):
            socket = self._sockets.get((host, port))
            if socket is None or socket.why is not None:
                socket = self._sockets[host, port] = await self.dial(host, port)
            (reply,) = await socket.execute(encode(b"SENTINEL", b"MASTER", self._name.encode()), 1)
        if isinstance(reply, ReplyError):
            if "No such master" in str(reply):
                raise StoreRefused(f"the sentinel at {shown(host, port)} knows no primary {self._name!r}")
            raise store_error(reply)
        fields = dict(zip(reply[::2], reply[1::2], strict=True))
        return Said(
            int(fields[b"config-epoch"]),
            (fields[b"ip"].decode(), int(fields[b"port"])),
            _UNSURE.isdisjoint(fields[b"flags"].split(b",")),
        )

    async def dial(self, host: str, port: int) -> StoreSocket:
        """Connect to a server that tells; log in where it asks for that, by the user and the password of the
        store.
        """
        _, socket = await asyncio.get_running_loop().create_connection(
            lambda: StoreSocket(ANSWER_S, lambda _: None), host, port, ssl=ssl_context(self.options)
        )
        try:
            (reply,) = await socket.execute(encode(b"PING"), 1)
            login = login_command(self.options)
            if isinstance(reply, ReplyError) and error_code(reply) == "NOAUTH" and login is not None:
                (reply,) = await socket.execute(login, 1)
            if isinstance(reply, ReplyError):
                raise store_error(reply)
        except BaseException:
            socket.give_up(StoreUnavailable("the sentinel did not get ready"))
            raise
        return socket


def login_command(options: Mapping[str, Any]) -> bytes | None:
    """`AUTH` with the user and the password of an address; None where it has none."""
    if not options.get("password"):
        return None
    user = [options["username"].encode()] if options.get("username") else []
    return encode(b"AUTH", *user, options["password"].encode())


def shown(host: str, port: int) -> str:
    """Return an address as text."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


# By what redis-py takes for them, too.
_CERT_REQS = {"none": ssl.CERT_NONE, "optional": ssl.CERT_OPTIONAL, "required": ssl.CERT_REQUIRED}


def ssl_context(options: Mapping[str, Any]) -> ssl.SSLContext | None:
    """What TLS needs by the options of an address; None where it does not ask for TLS.

    Raises OSError where a file cannot be read, ValueError where an option is none; both name the option.
    """
    # `parse_url` tells TLS only by the class of connection that redis-py would make.
    if not str(getattr(options.get("connection_class"), "__name__", "")).startswith("SSL"):
        return None
    with _reading(options, "ssl_ca_certs"):
        context = ssl.create_default_context(cafile=options.get("ssl_ca_certs"))
    if options.get("ssl_certfile"):
        with _reading(options, "ssl_certfile", "ssl_keyfile"):
            # Without a password OpenSSL would ask for one at the terminal, and wait.
            password = options.get("ssl_password", "")
            context.load_cert_chain(options["ssl_certfile"], options.get("ssl_keyfile"), password)
    wanted = str(options.get("ssl_cert_reqs", "required"))
    if wanted not in _CERT_REQS:
        raise ValueError(f"ssl_cert_reqs must be {', '.join(_CERT_REQS)}, not {wanted!r}")
    # In this order: Python refuses CERT_NONE as long as the host's name is checked.
    context.check_hostname = options.get("ssl_check_hostname", True) and wanted != "none"
    context.verify_mode = _CERT_REQS[wanted]
    return context


@contextlib.contextmanager
def _reading(options: Mapping[str, Any], *names: str) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        files = " and ".join(f"{name}={options[name]}" for name in names if options.get(name))
        raise OSError(f"{files} cannot be read ({exc.strerror or exc})") from exc
