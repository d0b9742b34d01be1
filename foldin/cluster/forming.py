"""Form a cluster of servers, and make one whole again that has lost some of them.

Invariant: what is done already is left as it is, so that it may be killed at any step and run again; slots go
to a server of whose data nothing is known only where no server has any data.
"""

import contextlib
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, permutations
from typing import Any

from redis import Redis
from redis.exceptions import RedisError

from featurestore.cluster.slots import SLOTS
from processes.errors import CannotStartError

DEFAULT_PORT = 6379  # of a server, as redis-py has it
# Each step takes milliseconds, a server that is gone is believed gone after its `cluster-node-timeout`; on
# busy cores everything takes longer.
WITHIN_S = 60.0
# Adds next to nothing to that.
LOOK_S = 0.05
# An introduction that came to nothing is forgotten by then, and is made again.
MEET_AGAIN_S = 5.0
# What a server says of one that it has given up.
_GONE = frozenset({"fail", "fail?", "noaddr"})


@dataclass(frozen=True, slots=True)
class Member:
    """A server, as one says of it in a line of CLUSTER NODES. `primary`: the name of the one that it follows,
    "" of a primary.
    """

    name: str
    flags: frozenset[str]
    primary: str
    reached: bool
    slots: tuple[tuple[int, int], ...]

    @classmethod
    def read(cls, line: str) -> "Member":
        """Read a line."""
        name, _, flags, primary, _, _, _, link, *held = line.split()
        # What stands in brackets is about to come or to go.
        ranges = [each.partition("-") for each in held if not each.startswith("[")]
        return cls(
            name,
            frozenset(flags.split(",")),
            primary.removeprefix("-"),
            link == "connected",
            tuple((int(first), int(last or first)) for first, _, last in ranges),
        )


View = Mapping[str, Member]
"""The members that one server knows, by name."""


def view_of(server: Redis) -> View:
    """Return what a server says of all, itself included. Raises RedisError."""
    text = _text(command(server, "CLUSTER", "NODES"))
    members = [Member.read(line) for line in text.splitlines() if "handshake" not in line]
    return {each.name: each for each in members}


def myself(server: Redis) -> Member:
    """Return what a server says of itself. Raises RedisError."""
    return next(each for each in view_of(server).values() if "myself" in each.flags)


def command(server: Redis, *words: Any) -> Any:
    """Return a server's reply to a command."""
    return server.execute_command(*words)  # type: ignore[no-untyped-call]  # redis-py


def meet(server: Redis, other: Redis) -> None:
    """Introduce a server to another one."""
    host, port = other.connection_pool.connection_kwargs["host"], _port(other)
    # CLUSTER MEET takes no names.
    address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][4][0]
    command(server, "CLUSTER", "MEET", address, port)


def share(number: int, primaries: int) -> tuple[int, int]:
    """Return the first and the last slot of a primary."""
    return number * SLOTS // primaries, (number + 1) * SLOTS // primaries - 1


def until(condition: Callable[[], bool], what: str, within_s: float = WITHIN_S) -> None:
    """Return when a condition holds; it does not while a server does not answer it. Raises TimeoutError with
    what it said last.
    """
    deadline, why = time.monotonic() + within_s, ""
    while True:
        try:
            if condition():
                return
        except (RedisError, OSError) as exc:
            why = f" ({exc})"
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {within_s:.0f} s: {what}{why}")
        time.sleep(LOOK_S)


def form(servers: Sequence[Redis], primaries: int) -> list[str]:
    """Return when these servers are one cluster: all slots are served, and each server that has none follows
    one that has. The first `primaries` get slots where none has any yet.

    Where a server has come back without its data another one that has it takes its place, and it follows
    that one. It must have come back at another address, or let no replica in before it has slots: the replica
    that looks for it there would copy it.

    Where the others serve all slots, servers that do not answer keep nothing from its end: nothing is done
    then, and their addresses are returned. Raises CannotStartError where it is not possible, TimeoutError.
    """
    if missing := _missing(servers):
        away = [_address(server) for server in missing]
        if not _serve_all([server for server in servers if server not in missing]):
            raise TimeoutError(f"not within {WITHIN_S:.0f} s: all servers answer, not {', '.join(away)}")
        return away
    _refuse_strangers(servers)
    _give_slots(servers, primaries)
    _introduce(servers)
    _replace_gone(servers)
    _give_primaries(servers)
    _forget_gone(servers)
    until(lambda: all(_is_served(server) for server in servers), "all slots are served")
    return []


def is_whole(servers: Sequence[Redis]) -> bool:
    """Say whether all agree that all slots are served, and replicas have what their primaries have."""
    links = [command(server, "INFO", "replication") for server in servers]
    return all(_is_served(server) for server in servers) and all(
        link["role"] == "master" or link["master_link_status"] == "up" for link in links
    )


def _missing(servers: Sequence[Redis]) -> list[Redis]:
    """Wait for all; return those that do not answer."""
    missing: list[Redis] = []

    def all_answer() -> bool:
        missing[:] = [server for server in servers if not _answers(server)]
        return not missing

    with contextlib.suppress(TimeoutError):
        until(all_answer, "all servers answer")
    return missing


def _answers(server: Redis) -> bool:
    try:
        return bool(command(server, "PING"))
    except (RedisError, OSError):
        return False


def _serve_all(servers: Sequence[Redis]) -> bool:
    try:
        held = {slot for server in servers for slot in _each_slot(myself(server))}
        return held == set(range(SLOTS)) and all(_is_served(server) for server in servers)
    except (RedisError, OSError):
        return False


def _is_served(server: Redis) -> bool:
    return "cluster_state:ok" in _text(command(server, "CLUSTER", "INFO"))


def _refuse_strangers(servers: Sequence[Redis]) -> None:
    for one, other in combinations(map(view_of, servers), 2):
        theirs = [_own(view) for view in (one, other)]
        both = set(_each_slot(theirs[0])) & set(_each_slot(theirs[1]))
        if both and theirs[0].name not in other and theirs[1].name not in one:
            raise CannotStartError(
                "servers of two clusters cannot be made one: name those of one cluster, or empty ones"
            )


def _give_slots(servers: Sequence[Redis], primaries: int) -> None:
    views = [view_of(server) for server in servers]
    given = {slot for view in views for member in view.values() for slot in _each_slot(member)}
    missing = set(range(SLOTS)) - given
    if not missing:
        return
    if any(command(server, "DBSIZE") for server in servers):
        raise _lost(missing, "the other servers have data")
    for number, server in enumerate(servers[:primaries]):
        first, last = share(number, primaries)
        for begin, end in _ranges(missing & set(range(first, last + 1))):
            command(server, "CLUSTER", "ADDSLOTSRANGE", begin, end)
        # Else all begin with the same one, and have to find that out; of one that has met others it stays.
        with contextlib.suppress(RedisError):
            command(server, "CLUSTER", "SET-CONFIG-EPOCH", number + 1)


def _introduce(servers: Sequence[Redis]) -> None:
    met_at = float("-inf")

    def met() -> bool:
        nonlocal met_at
        views = [view_of(server) for server in servers]
        names = [_own(view).name for view in views]
        apart = [
            (one, other)
            for one, other in permutations(range(len(servers)), 2)
            if names[other] not in views[one] or not views[one][names[other]].reached
        ]
        # Those who know each other meet by themselves, within a second.
        if apart and time.monotonic() - met_at > MEET_AGAIN_S:
            met_at = time.monotonic()
            for one, other in apart:
                meet(servers[one], servers[other])
        return not apart

    until(met, "all servers know each other")


def _replace_gone(servers: Sequence[Redis]) -> None:
    """Have a replica take the place of each primary that is none of these servers any more."""

    def replaced() -> bool:
        views = [view_of(server) for server in servers]
        absent = {member.name: member for member in _absent(views) if member.slots}
        held = {slot for view in views for slot in _each_slot(_own(view))}
        for name, member in absent.items():
            lost = set(_each_slot(member)) - held
            # Another one has them, and not all have heard of it.
            if not lost or not member.flags & _GONE:
                continue
            followers = [
                server for server, view in zip(servers, views, strict=True) if _own(view).primary == name
            ]
            others = (each for view in views for each in view.values() if each.reached)
            if followers:
                taker = max(followers, key=_copied)
                if not any(_copied(taker)) and any(command(server, "DBSIZE") for server in servers):
                    raise _lost(lost, "the one that had them went before a replica had copied it")
                # By itself it would not where most primaries are gone, or one came back under its address.
                command(taker, "CLUSTER", "FAILOVER", "TAKEOVER")
            elif all(each.primary != name for each in others):
                raise _lost(lost, "the servers that had them are gone")
        return not absent

    until(replaced, "a replica has the slots of each server that is gone")


def _give_primaries(servers: Sequence[Redis]) -> None:
    def following() -> bool:
        own = [myself(server) for server in servers]
        count = {member.name: 0 for member in own if member.slots}
        for member in own:
            if member.primary in count:
                count[member.primary] += 1
        idle = [
            (server, member)
            for server, member in zip(servers, own, strict=True)
            if not member.slots and member.primary not in count
        ]
        for server, _ in idle:
            primary = min(count, key=lambda name: count[name])
            command(server, "CLUSTER", "REPLICATE", primary)
            count[primary] += 1
        return not idle

    until(following, "each server without slots follows one that has some")


def _forget_gone(servers: Sequence[Redis]) -> None:
    def forgotten() -> bool:
        absent = list(_absent([view_of(server) for server in servers]))
        for name in {member.name for member in absent if member.flags & _GONE}:
            for server in servers:
                # One may have forgotten it already.
                with contextlib.suppress(RedisError):
                    command(server, "CLUSTER", "FORGET", name)
        return not absent

    until(forgotten, "servers that are gone are forgotten")


def _absent(views: Sequence[View]) -> Iterator[Member]:
    """Members that are none of the servers whose views these are, as one sees them that does not reach them:
    it has given them up, or is about to find out.
    """
    names = {_own(view).name for view in views}
    for view in views:
        for member in view.values():
            if member.name not in names and (not member.reached or member.flags & _GONE):
                yield member


def _own(view: View) -> Member:
    return next(each for each in view.values() if "myself" in each.flags)


def _copied(server: Redis) -> tuple[bool, int]:
    """Return whether a replica has keys or functions, and how much of what its primary wrote it has heard
    since it started. It has neither before its first copy has ended: its primary's slots are not for it then.
    """
    info = command(server, "INFO")
    has_data = bool(command(server, "DBSIZE") or info.get("number_of_libraries"))
    # Of one that has heard nothing a server says 1.
    return has_data, max(int(info.get("slave_repl_offset", 0)) - 1, 0)


def _lost(slots: set[int], why: str) -> CannotStartError:
    ranges = ", ".join(f"{first}-{last}" for first, last in _ranges(slots))
    return CannotStartError(
        f"slots {ranges} of the cluster have no server, and {why}: put their data back, or begin with empty "
        "servers and `foldin restore` the archive"
    )


def _each_slot(member: Member) -> Iterator[int]:
    for first, last in member.slots:
        yield from range(first, last + 1)


def _ranges(slots: set[int]) -> Iterator[tuple[int, int]]:
    ends = sorted(slot for slot in slots if slot + 1 not in slots)
    return zip(sorted(slot for slot in slots if slot - 1 not in slots), ends, strict=True)


def _address(server: Redis) -> str:
    return f"{server.connection_pool.connection_kwargs['host']}:{_port(server)}"


def _port(server: Redis) -> int:
    # An address may leave it out.
    return int(server.connection_pool.connection_kwargs.get("port", DEFAULT_PORT))


def _text(reply: Any) -> str:
    return reply.decode() if isinstance(reply, bytes) else str(reply)
