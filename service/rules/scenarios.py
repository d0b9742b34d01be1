"""Scenarios: rules under a name, which a call has for its own. Invariant: a scenario that was stored before a
call began is the one that the call has; while the store is away, the one that this worker had last.
"""

import asyncio
from typing import Any

import msgspec

from featurestore.catalogue.scenarios import Scenarios
from featurestore.errors import StoreUnavailable
from service.http.problems import Problem
from service.rules.request import RuleFields

# Those that are decoded are kept: a large one takes a millisecond.
_KEPT = 64

_DECODER = msgspec.json.Decoder(RuleFields)


class ScenarioReader:
    """Reads the scenarios of calls."""

    def __init__(self, stored: Scenarios) -> None:
        self._stored = stored
        self._kept: dict[str, tuple[bytes, RuleFields]] = {}

    def ask(self, name: str | None) -> "asyncio.Future[list[Any]] | None":
        """Ask for a scenario in the write of this turn of the event loop; `read` takes the reply."""
        if name is None:
            return None
        asked = self._stored.ask(name.encode())
        # The caller may fail before it comes to this reply.
        asked.add_done_callback(lambda reply: reply.cancelled() or reply.exception())
        return asked

    async def read(self, name: str | None, asked: "asyncio.Future[list[Any]] | None") -> RuleFields | None:
        """Return the rules of a scenario, None where none was asked for. Raises `unknown_scenario`."""
        if name is None or asked is None:
            return None
        kept = self._kept.get(name)
        try:
            value = self._stored.found((await asked)[0])
        except StoreUnavailable:
            if kept is None:
                raise
            return kept[1]
        if value is None:
            self._kept.pop(name, None)
            raise Problem("unknown_scenario", f"there is no scenario {name!r}", field="scenario")
        if kept is None or kept[0] != value:
            kept = value, decoded(name, value)
        # At the end, as what was used last.
        self._kept.pop(name, None)
        self._kept[name] = kept
        if len(self._kept) > _KEPT:
            del self._kept[next(iter(self._kept))]
        return kept[1]


def decoded(name: str, value: bytes) -> RuleFields:
    """Return the rules that are stored. Raises `data_damaged` where they cannot be read."""
    try:
        return _DECODER.decode(value)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        detail = f"the scenario {name!r} cannot be read; put it again, or delete it"
        raise Problem("data_damaged", detail, field="scenario", retry_after_s=60) from None
