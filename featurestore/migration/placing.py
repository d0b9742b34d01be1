"""Writing into the store that a namespace moves to. Invariant: what another command has begun anew since is
left alone: each write looks, in the same step, whether this command still fills the slot.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from featurestore.migration.errors import MigrationStopped
from featurestore.migration.stages import ARRIVING
from featurestore.store import Store
from featurestore.wire.functions import call_many, encode_call

Kind = Literal["string", "hash", "list", "set", "zset", "zrem", "stream"]


@dataclass(frozen=True, slots=True)
class Filling:
    """What a key gets: the `parts` of its type, as `functions.lua:FILL` takes them; none: it goes. `fresh`:
    in place of what it has. `stays_ms`: b"" for ever.
    """

    key: bytes
    kind: Kind
    parts: Sequence[bytes]
    fresh: bool = True
    stays_ms: bytes = b""


class Placing:
    """Fills the keys of a store for one command."""

    def __init__(self, store: Store, token: str) -> None:
        self._store = store
        self._keys = store.keys
        self.token = token
        self._said = f"{ARRIVING} {token}".encode()

    async def place(self, calls: Sequence[Sequence[Filling]]) -> None:
        """Fill keys; those of one call, which are of one slot, in one step. Raises `StoreMigrating` where
        another command fills this store, `StoreError`.
        """
        encoded = []
        for some in calls:
            args = [self._said]
            for each in some:
                args += [each.kind.encode(), b"1" if each.fresh else b"", each.stays_ms]
                args += [b"%d" % len(each.parts), *each.parts]
            names = [self._guard(some[0].key), *(each.key for each in some)]
            encoded.append(encode_call("place", names, args))
        if encoded:
            await call_many(self._store.bulk, encoded)

    def _guard(self, key: bytes) -> bytes:
        # On one server what the pointer's slot says is there for every key.
        return self._keys.migration(key if self._store.settings.is_cluster else self._keys.live)


def flat(pairs: Iterable[tuple[bytes, bytes]]) -> list[bytes]:
    """Return pairs one after the other, as commands take them."""
    return [part for pair in pairs for part in pair]


def require(*, holds: bool, why: str) -> None:
    """Raise `MigrationStopped` unless something holds."""
    if not holds:
        raise MigrationStopped(why)
