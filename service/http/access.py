"""Who may ask what: the one check of every request, made before its body is read.

Invariant: a request passes only by a key whose role includes what its route needs, or where the service
asks for no keys; and never because a web page of another origin made a browser send it.

Keys say which program asks. A browser sends requests for any page that it shows, so the headers by which it
tells which page that was are checked as well, and first.
"""

import ipaddress
import re
from collections.abc import Iterable, Mapping
from typing import Literal

from aiohttp import hdrs

from featurestore.access import ROLES, ApiKey, Role, StoredKeys, count_of, digest_of_secret
from service.http.problems import Problem

# What a route may need; `public` routes hold no data.
Need = Role | Literal["public"]
# A role includes those of a lower number.
LEVELS: Mapping[Need, int] = {"public": 0, **{role: level for level, role in enumerate(ROLES, 1)}}
PUBLIC, READ = LEVELS["public"], LEVELS["read"]

_API_KEY, _FETCH_SITE, _FETCH_MODE = "X-API-Key", "Sec-Fetch-Site", "Sec-Fetch-Mode"
# What proxies add, or are mostly told to add.
_FORWARDED = ("Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Real-IP")
_BEARER = re.compile(r"bearer +(\S+)", re.I)
# Texts of headers that passed and are not checked again: more than any fleet of clients has.
_PASSED_KEPT = 1_024
# The name of a caller without a key that is known.
UNKNOWN = "-"


class Access:
    """Checks requests against `update`d keys.

    `asks`: whether keys are asked for at all. `loopback`: whether only this machine can reach the service.
    `hosts`, `origins`: besides its own, the names and the origins under which it may be asked.
    """

    def __init__(
        self, *, asks: bool = True, loopback: bool, hosts: Iterable[str] = (), origins: Iterable[str] = ()
    ) -> None:
        self._may_ask = asks
        self._loopback = loopback
        self._hosts = frozenset(host.lower() for host in hosts)
        self._origins = frozenset(origin.lower() for origin in origins)
        self._keys: StoredKeys = {}
        self._had_key = False
        # `Authorization` as it was sent -> the key: to hash it for each request costs more than the rest.
        self._verified: dict[str, ApiKey] = {}
        self._hosts_passed: set[str | None] = set()
        self.asks = asks and not loopback

    @property
    def known(self) -> int:
        """How many keys there are."""
        return count_of(self._keys)

    @property
    def had_key(self) -> bool:
        """Whether there is a key, or was one."""
        return self._had_key

    def close(self) -> None:
        """Ask for keys from now on, be there none: there was one."""
        self._had_key = True
        if self._may_ask and not self.asks:
            self.asks = True
            self._hosts_passed = set()

    def update(self, keys: StoredKeys) -> tuple[list[ApiKey], list[ApiKey]]:
        """Take these keys from now on; return those that are new, and those that are gone. Once there was one
        the service stays closed, were all removed.
        """
        before = self._keys
        if keys != before:
            self._keys = dict(keys)
            self._verified = {}
        if keys:
            self.close()
        return _beyond(keys, before), _beyond(before, keys)

    def admit(self, headers: Mapping[str, str], level: int, *, old_http: bool = False) -> ApiKey | None:
        """Let a request of a route that needs `level` pass; return the key that was looked at. `old_http`: it
        is of HTTP/1.0, as nginx sends what it forwards where nothing else was said.

        Raises the problems `cross_site`, `unauthorized`, `forbidden`.
        """
        if hdrs.ORIGIN in headers or _FETCH_SITE in headers:
            self._check_page(headers, level)
        if self._hosts or not self.asks:
            host = headers.get(hdrs.HOST)
            if host not in self._hosts_passed:
                self._check_host(host)
        if level == PUBLIC:
            return None
        if not self.asks:
            if self._may_ask and (old_http or any(name in headers for name in _FORWARDED)):
                # Only this machine reaches the service, and a proxy on it lets all others do so.
                raise Problem(
                    "unauthorized",
                    "this came through a proxy, or by HTTP/1.0 as from one, and the service asks for no key: "
                    "make one by `foldin keys add NAME --role ROLE`, or say FOLDIN_ACCESS=open",
                    headers={"WWW-Authenticate": "Bearer"},
                )
            return None
        key = self._verified.get(headers.get(hdrs.AUTHORIZATION, "")) or self.key_of(headers)
        if key is None:
            raise Problem(
                "unauthorized",
                "send a key that is known, as `Authorization: Bearer KEY` or `X-API-Key: KEY`",
                headers={"WWW-Authenticate": "Bearer"},
            )
        if LEVELS[key.role] < level:
            detail = f"this call needs a key with the role {ROLES[level - 1]}, not {key.role}"
            raise Problem("forbidden", detail)
        return key

    def name_of(self, headers: Mapping[str, str]) -> str:
        """Return the name of the key that a request brings, for the log."""
        key = self.key_of(headers)
        return UNKNOWN if key is None else key.name

    def key_of(self, headers: Mapping[str, str]) -> ApiKey | None:
        """Return the key that a request brings, if it is known."""
        sent = headers.get(hdrs.AUTHORIZATION, "")
        if sent[:7].lower() != "bearer ":
            # The other header has the key alone; a proxy may have a use of its own for the first.
            sent = "Bearer " + headers.get(_API_KEY, "")
        key = self._verified.get(sent)
        if key is None and (found := _BEARER.fullmatch(sent)):
            # By digest: how long a lookup takes says nothing of a key that is nearly right.
            key = self._keys.get(digest_of_secret(found[1]))
            if key is not None:
                if len(self._verified) >= _PASSED_KEPT:
                    self._verified.clear()
                self._verified[sent] = key
        return key

    def _check_page(self, headers: Mapping[str, str], level: int) -> None:
        """Refuse what a browser sends on behalf of a page of another origin."""
        origin = headers.get(hdrs.ORIGIN)
        if origin is not None:
            origin = origin.lower()
            # A proxy that ends TLS does not say so by itself, hence both schemes: who can serve a page
            # under the service's own name by the other one can also change what is sent to it.
            scheme, _, authority = origin.partition("://")
            own = scheme in {"http", "https"} and authority == headers.get(hdrs.HOST, "").lower()
            if not own and origin not in self._origins:
                raise Problem("cross_site", "pages of another origin may not ask; see FOLDIN_ORIGINS")
        elif headers.get(_FETCH_SITE) == "cross-site" and not (
            # A link to one of the pages is no harm.
            level == PUBLIC and headers.get(_FETCH_MODE) == "navigate"
        ):
            raise Problem("cross_site", "pages of another site may not ask")

    def _check_host(self, host: str | None) -> None:
        """Refuse a name that is not the service's: a page can make any name of its own lead to this machine
        (DNS rebinding), and is then of the service's origin to the browser. Where keys are asked for
        without a list of names that is no danger, for the page has no key.
        """
        if not self._is_own(host):
            raise Problem("cross_site", "the service is not known by this name; see FOLDIN_HOSTS")
        if len(self._hosts_passed) >= _PASSED_KEPT:
            self._hosts_passed.clear()
        self._hosts_passed.add(host)

    def _is_own(self, host: str | None) -> bool:
        # What sends no Host is no browser. Open to other machines, the service cannot know its names.
        if host is None or not (self._loopback or self._hosts):
            return True
        name = re.sub(r":\d*$", "", host).lower()
        if name == "localhost" or name in self._hosts or host.lower() in self._hosts:
            return True
        # An address is no name that a page could make lead elsewhere: probes and scrapes ask by one.
        address = address_of(name)
        return address is not None and (address.is_loopback or self.asks or not self._loopback)


def _beyond(keys: StoredKeys, others: StoredKeys) -> list[ApiKey]:
    """Return the keys that the others do not have, or not as they are."""
    return [key for digest, key in keys.items() if key is not None and others.get(digest) != key]


def address_of(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return the IP address that `name` is, with or without brackets; None for any other text."""
    # What follows a `%`, the zone of an address, may be any text.
    if "%" in name:
        return None
    try:
        return ipaddress.ip_address(name.removeprefix("[").removesuffix("]"))
    except ValueError:
        return None
