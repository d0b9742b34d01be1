"""What each caller may take, a key or a client's address: by token buckets that all workers share.

Invariant: no request waits for the store here. A worker spends from its own copy of a bucket; ten times a
second it says what it let through, and takes over what is left. So a caller may get what a worker answers
within a tenth of a second beyond its quota, and pays for that by waiting longer.
"""

import asyncio
import ipaddress
import logging
import math
import random
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import lru_cache
from time import monotonic
from typing import Any, cast

from aiohttp import web

from featurestore.access import ApiKey
from featurestore.errors import StoreError
from featurestore.keys import digest_of
from featurestore.quotas.buckets import Buckets, Spending
from featurestore.quotas.limits import Limits, Part, Quota, Rate, WriteLimits, parse_quota
from service.http.access import address_of
from service.http.audit import Audit
from service.http.problems import Problem
from service.metrics import Counts

log = logging.getLogger("foldin.service")

SHARE_S = 0.1  # so long a worker may be wrong about what other workers let through
# What is less than this part of a bucket is not worth a write to the store, ten times a second a caller.
SHARED_PART = 0.01
# A caller takes 1 KB; beyond, the one that came first is forgotten, and begins with what the store says.
CALLERS_KEPT = 16_384
# A provider gives a customer as many addresses of IPv6 as it likes, all with the same first 64 bits.
IPV6_PREFIX = 64
FORGET_S = 1.0  # often enough that those who are gone take no memory
# So long a connection that was refused is not read: no longer than `Retry-After` says. Those of a client
# that does not wait are read again one after the other; all at once they would spend together what had come
# into the bucket meanwhile, and others would wait behind them.
HOLD_S = (0.5, 1.0)
_FORWARDED = "X-Forwarded-For"


class _Bucket:
    """A worker's copy: `level` tokens at the moment `at`, and the tokens `spent` since the store was told;
    it is put into `queue` when these are worth telling.
    """

    __slots__ = ("at", "due", "level", "name", "per_s", "queue", "queued", "rate", "size", "spent")

    def __init__(self, name: bytes, rate: Rate, queue: "list[_Bucket]") -> None:
        self.name = name
        self.rate = rate
        self.size, self.per_s, self.due = rate.size, rate.per_s, SHARED_PART * rate.size
        self.level = rate.size
        self.at = monotonic()
        self.spent = 0.0
        self.queue = queue
        self.queued = False

    def take(self, tokens: float) -> float:
        """Take tokens; return 0, or in how many seconds there are enough: then nothing was taken."""
        # Each request comes here: the level is kept in a variable, and no other function called but by few.
        now = monotonic()
        level = self.level + (now - self.at) * self.per_s
        level = min(level, self.size)
        self.at = now
        # What is more than a bucket holds takes a full one, and leaves less than nothing.
        if level < tokens and level < self.size:
            self.level = level
            return (min(tokens, self.size) - level) / self.per_s
        self.level = level - tokens
        self.spent += tokens
        if self.spent >= self.due and not self.queued:
            self.queued = True
            self.queue.append(self)
        return 0.0

    def charge(self, tokens: float) -> float:
        """Take tokens, be they there or not; return in how many seconds nothing is owed any more."""
        now = monotonic()
        self.level = min(self.level + (now - self.at) * self.per_s, self.size) - tokens
        self.at = now
        self.spent += tokens
        if self.spent >= self.due and not self.queued:
            self.queued = True
            self.queue.append(self)
        return max(0.0, -self.level / self.per_s)

    def take_over(self, before: "_Bucket") -> None:
        """Be as full as another was, whatever each holds."""
        level = before.level + (monotonic() - before.at) * before.per_s
        self.level = self.size * min(1.0, level / before.size)

    def is_full(self, now: float) -> bool:
        """Whether nothing is missing any more."""
        return self.level + (now - self.at) * self.per_s >= self.size


class Caller:
    """A key or an address, and what it may take. `name` is for the caller itself: it names no other."""

    __slots__ = ("buckets", "digest", "key", "limits", "name")

    def __init__(self, name: str, limits: Limits, queue: list[_Bucket], key: ApiKey | None = None) -> None:
        self.name = name
        self.limits = limits
        self.key = key
        self.digest = digest_of(name.encode("utf-8", "surrogateescape"))
        rates: dict[Quota, Rate | None] = {
            "requests": limits.requests,
            "probes": limits.probes,
            "ratings": limits.ratings,
        }
        self.buckets = {
            quota: _Bucket(f"{quota}:{self.digest.hex()}".encode(), rate, queue)
            for quota, rate in rates.items()
            if rate is not None
        }


# Under this the request has its caller, for what a handler takes besides.
CALLED_BY = web.RequestKey("called_by", Caller)


class Quotas:
    """The quotas of one worker. `limits`: of an address, and of a key that may not operate; None is none."""

    def __init__(self, audit: Audit, counts: Counts, limits: Limits | None) -> None:
        self._audit = audit
        self._counts = counts
        self._limits = limits
        self._callers: dict[str, Caller] = {}
        self._queue: list[_Bucket] = []
        # To parse what a proxy says costs more than the rest.
        self._address = lru_cache(CALLERS_KEPT)(self._address_of)
        self.is_proxy = lru_cache(CALLERS_KEPT)(audit.trusts)

    @property
    def connections(self) -> int | None:
        """How many connections an address may have open."""
        return None if self._limits is None else self._limits.connections

    def caller(self, headers: Mapping[str, str], peer: str | None, key: ApiKey | None) -> Caller | None:
        """Return who asks, with that known key or without; None where it may take what it likes."""
        if key is not None:
            found = self._callers.get(key.name)
            # Another object of that name is another key, or came with other quotas.
            return found if found is not None and found.key is key else self._of_key(key)
        if self._limits is None:
            return None
        # aiohttp's headers have several lines of a name, which a mapping has not.
        forwarded = tuple(cast("Any", headers).getall(_FORWARDED)) if _FORWARDED in headers else ()
        address = self._address(peer, forwarded)
        return self._callers.get(address) or self._keep(address, Caller(address, self._limits, self._queue))

    def taken(self, caller: Caller | None, quota: Quota, tokens: float = 1.0) -> Problem | None:
        """Take tokens; where there are too few, return the problem: then nothing was taken."""
        bucket = None if caller is None else caller.buckets.get(quota)
        if caller is not None and bucket is not None and (wait_s := bucket.take(tokens)) > 0:
            return self.refusal(caller, quota, wait_s)
        return None

    def charge(self, caller: Caller | None, tokens: float) -> float:
        """Take more tokens for a request that was let in, which may leave less than nothing; return in how
        many seconds that is made up for.
        """
        bucket = None if caller is None else caller.buckets.get("requests")
        return 0.0 if bucket is None else bucket.charge(tokens)

    def refusal(self, caller: Caller, quota: Quota, wait_s: float) -> Problem:
        """Return, and count, the problem that says which quota, whose, and when there is more."""
        self._counts.refused(quota)
        limit, wait_s = getattr(caller.limits, quota), max(1, math.ceil(wait_s))
        return Problem(
            "quota_exceeded",
            f"{caller.name} may have {limit.text} of {quota}; ask again in {wait_s} s",
            retry_after_s=wait_s,
            extra={"quota": quota, "caller": caller.name, "limit": limit.text},
        )

    def hold_s(self, peer: str | None) -> float:
        """Return for how many seconds a connection that was refused is not read."""
        # By a proxy's others may come.
        return 0.0 if self.is_proxy(peer) else random.uniform(*HOLD_S)  # noqa: S311 - no secret

    def address(self, peer: str | None) -> str:
        """Return whose a connection from `peer` is."""
        return self._address(peer, ())

    def too_many_connections(self, address: str, most: int) -> Problem:
        """Return, and count, the problem of a connection that is one too many for its address."""
        self._counts.refused("connections")
        return Problem(
            "quota_exceeded",
            f"{address} may have {most} connections open",
            retry_after_s=1,
            extra={"quota": "connections", "caller": address, "limit": str(most)},
        )

    def write_limits(self, caller: Caller | None) -> WriteLimits | None:
        """Return what a call of ratings may add."""
        if caller is None:
            return None
        return WriteLimits(caller.digest, caller.limits.items, caller.limits.history)

    async def share(self, buckets: Buckets) -> None:
        """Share what is spent with the other workers, always; while the store is away each is on its own."""
        failing, forgotten = False, monotonic()
        while True:
            await asyncio.sleep(SHARE_S)
            try:
                await self._tell(buckets)
                failing = False
            except StoreError as exc:
                if not failing:
                    log.warning("what callers took is not shared with other workers reason=%s", exc)
                failing = True
            except Exception:  # the edge of the loop: were it to end, each worker would be on its own
                if not failing:
                    log.exception("what callers took is not shared with other workers")
                failing = True
            if (now := monotonic()) - forgotten >= FORGET_S:
                self._forget(now)
                forgotten = now

    async def _tell(self, buckets: Buckets) -> None:
        due = self._queue[:]
        self._queue.clear()
        told = [Spending(bucket.name, bucket.rate, bucket.spent) for bucket in due]
        for bucket in due:
            bucket.spent, bucket.queued = 0.0, False
        if due:
            levels, now = await buckets.spend(told), monotonic()
            for bucket, level in zip(due, levels, strict=True):
                bucket.level, bucket.at = level - bucket.spent, now

    def _forget(self, now: float) -> None:
        full = [
            name
            for name, caller in self._callers.items()
            if all(bucket.is_full(now) for bucket in caller.buckets.values())
        ]
        for name in full:
            del self._callers[name]

    def _of_key(self, key: ApiKey) -> Caller | None:
        # Who operates may replace all ratings: a quota would protect nothing, unless it is the key's own.
        base = Limits() if key.role == "operate" or self._limits is None else self._limits
        limits = base.but(_readable(key.quotas))
        if limits == Limits():
            return None
        before = self._callers.get(key.name)
        if before is not None and before.limits == limits:
            before.key = key
            return before
        caller = Caller(f"key {key.name}", limits, self._queue, key)
        if before is not None:
            # Two keys of one name that are used in turns would else find full buckets each time.
            for quota in caller.buckets.keys() & before.buckets.keys():
                caller.buckets[quota].take_over(before.buckets[quota])
        return self._keep(key.name, caller)

    def _keep(self, name: str, caller: Caller) -> Caller:
        if len(self._callers) >= CALLERS_KEPT:
            del self._callers[next(iter(self._callers))]
        self._callers[name] = caller
        return caller

    def _address_of(self, peer: str | None, forwarded: tuple[str, ...]) -> str:
        found = self._audit.client_of(peer, forwarded)
        address = address_of(found)
        if isinstance(address, ipaddress.IPv6Address):
            network = ipaddress.ip_network((address, IPV6_PREFIX), strict=False)
            found = str(address.ipv4_mapped or network)
        # The space tells it from every name of a key.
        return f"address {found}"


def _readable(text: str) -> Iterator[Part]:
    """Yield the quotas of a key; what only a newer version can read is left out."""
    for part in text.split(","):
        with suppress(ValueError):
            yield parse_quota(part)
