"""Scenarios: rules under a name, which a call has for its own. Invariant: a scenario that was stored before a
call began is the one that the call has; while the store is away, the one that this worker had last.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import msgspec

from featurestore.catalogue.scenarios import Scenarios, version_of
from featurestore.catalogue.schema import Types
from featurestore.errors import StoreUnavailable
from service.http.problems import Problem
from service.rules.request import ATTRIBUTE_OF, RuleFields, Rules, parse_rules

# Bytes of JSON, of which the rules take some ten times as much memory; those that were used last are kept.
_KEPT_BYTES = 8_000_000

_DECODER = msgspec.json.Decoder(RuleFields)

# Returns what a function makes of the types of attributes; beside it, of how many bytes of JSON.
Parse = Callable[[Callable[[Types], Rules], int], Awaitable[Rules]]


class _Kept(NamedTuple):
    """Rules as they were parsed, and of which version and size their JSON is."""

    version: bytes
    size: int
    rules: Rules


class ScenarioReader:
    """Reads the scenarios of calls; each version is parsed once."""

    def __init__(self, stored: Scenarios) -> None:
        self._stored = stored
        self._kept: dict[str, _Kept] = {}

    def ask(self, name: str | None) -> "asyncio.Future[list[Any]] | None":
        """Ask for a scenario in the write of this turn of the event loop; `read` takes the reply."""
        if name is None:
            return None
        asked = self._stored.ask(name.encode())
        # The caller may fail before it comes to this reply.
        asked.add_done_callback(lambda reply: reply.cancelled() or reply.exception())
        return asked

    async def read(
        self, name: str | None, asked: "asyncio.Future[list[Any]] | None", parse: Parse
    ) -> Rules | None:
        """Return the rules of a scenario, None where none was asked for. Raises `unknown_scenario`."""
        if name is None or asked is None:
            return None
        kept = self._kept.get(name)
        try:
            version = self._stored.found((await asked)[0])
            if kept is None or kept.version != version:
                kept = await self._parsed(name, kept, parse)
        except StoreUnavailable:
            if kept is None:
                raise
        # At the end, as what was used last.
        self._kept.pop(name, None)
        self._kept[name] = kept
        while len(self._kept) > 1 and sum(each.size for each in self._kept.values()) > _KEPT_BYTES:
            del self._kept[next(iter(self._kept))]
        return kept.rules

    async def _parsed(self, name: str, kept: _Kept | None, parse: Parse) -> _Kept:
        value = await self._stored.get(name.encode())
        if value is None:
            self._kept.pop(name, None)
            raise Problem("unknown_scenario", f"there is no scenario {name!r}", field="scenario")
        # Not the version that was asked for: another text may have taken its place since.
        version = version_of(value)
        if kept is not None and kept.version == version:
            return kept
        rules = await parse(lambda types: parse_rules(decoded(name, value), types), len(value))
        return _Kept(version, len(value), rules)


def names_attribute(fields: RuleFields, name: str) -> bool:
    """Return whether rules are about an attribute of this name."""
    if f"{ATTRIBUTE_OF}{name}" in (fields.include or ()):
        return True
    left: list[Any] = [msgspec.to_builtins([fields.filter, fields.boosts])]
    while left:
        each = left.pop()
        if isinstance(each, dict):
            if each.get("key") == name:
                return True
            left += each.values()
        elif isinstance(each, list):
            left += each
    return False


def decoded(name: str, value: bytes) -> RuleFields:
    """Return the rules that are stored. Raises `data_damaged` where they cannot be read."""
    try:
        return _DECODER.decode(value)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        detail = f"the scenario {name!r} cannot be read; put it again, or delete it"
        raise Problem("data_damaged", detail, field="scenario", retry_after_s=60) from None
