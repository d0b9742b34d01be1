"""How far a migration is, as both stores say it. Invariant: only the command that was begun last changes
that, and once the source says `gone` it never takes anything again.

The source says it in each slot, beside the keys that its functions touch, so that these look at it in the
same step (`functions.lua:migrating`):

    (nothing) -> copying -> closing -> moved -> gone
        ^___________|__________|_________|

`gone`, said in the slot of the pointer alone, is the one step that decides: before it the source can be
released, after it the target is the store.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from featurestore.errors import StoreMigrating
from featurestore.keys import Keys
from featurestore.store import Store
from featurestore.wire.functions import call_many, encode_call

COPYING, CLOSING, MOVED, GONE, ARRIVING = "copying", "closing", "moved", "gone", "arriving"

Kind = Literal["string", "hash", "list", "set", "zset", "zrem", "stream"]


class MigrationRefused(Exception):  # noqa: N818 - says what happened
    """It cannot be done as things are: nothing was changed. The message says what to do."""


class MigrationStopped(Exception):  # noqa: N818 - says what happened
    """It was broken off, and the source takes ratings as before. Run it again."""


def slots(keys: Keys, epoch: int) -> list[bytes]:
    """Return a key of each slot whose functions a migration keeps, that of the pointer first."""
    named = [
        *(keys.live, keys.catalogue, keys.config, keys.access, keys.event_types, keys.contexts),
        keys.items(epoch),
        *(keys.epochs(partition) for partition in range(keys.partitions)),
    ]
    found: dict[bytes, bytes] = {}
    for key in named:
        found.setdefault(keys.migration(key), key)
    return list(found.values())


async def require_one_history(store: Store, epoch: int) -> None:
    """Raise `MigrationRefused` unless `epoch` is all that there is, and all that is to be."""
    pointer = await store.generations.live()
    if pointer.pending or pointer.epoch != epoch:
        raise MigrationRefused("a new history is being prepared: run this again when it is live")
    if await store.generations.epochs() != {epoch}:
        raise MigrationRefused(
            "a history that was replaced is still being put away: run this again in a minute"
        )


class Stages:
    """What a store says of a migration. `address`: where the namespace goes, without a password."""

    def __init__(self, store: Store, epoch: int, token: str, address: str) -> None:
        self._store = store
        self._keys = store.keys
        self.slots = slots(store.keys, epoch)
        self._epoch = b"%d" % epoch
        self._partitions = {store.keys.epochs(each) for each in range(store.keys.partitions)}
        self._token = token
        self._address = address

    def text(self, stage: str) -> bytes:
        """Return what a slot says in a stage."""
        shown = [stage, self._token, self._address] if stage in {MOVED, GONE} else [stage, self._token]
        return " ".join(shown).encode()

    async def read(self) -> list[bytes]:
        """Return what each slot says."""
        found = await self._store.redis.of_each("GET", map(self._keys.migration, self.slots))
        return [said or b"" for said in found]

    async def begin(self, stage: str) -> None:
        """Take over from whichever command was there. Raises `StoreMigrating` where the source is gone,
        `MigrationRefused` where a new history was begun since it was looked at.
        """
        said = await self.read()
        if said[0].startswith(GONE.encode()):
            raise StoreMigrating("the namespace has moved already")
        # That of the pointer first: a command that was frozen meanwhile decides nothing from here on.
        await self._set(self.slots[:1], said[:1], self.text(stage))
        # From here on none can be begun.
        await require_one_history(self._store, int(self._epoch))
        await self._set(self.slots[1:], said[1:], self.text(stage))
        await self._drop(said)

    async def go_on(self, before: str, after: str) -> None:
        """Go from a stage to the next, in all slots. Raises `StoreMigrating` where another command has taken
        over, or a person has given this one up.
        """
        await self._set(self.slots, [self.text(before)] * len(self.slots), self.text(after))

    async def decide(self) -> None:
        """Say that the source is gone: the target is the store from here on. Safe to repeat. Raises as
        `go_on`.
        """
        await self._set(self.slots[:1], [self.text(MOVED)], self.text(GONE))

    async def end(self, *, own: bool) -> None:
        """Say nothing any more, in any slot; that of the pointer first. `own`: unless another command has
        taken over, or a person has given this one up; only what names this one goes then. Raises
        `StoreMigrating` where the source is gone.
        """
        said = await self.read()
        if said[0].startswith(GONE.encode()):
            raise StoreMigrating("the namespace has moved already")
        if own and not self._is_own(said[0]):
            said = [text if self._is_own(text) else b"" for text in said]
        for some in (slice(1), slice(1, None)):
            named = [(key, text) for key, text in zip(self.slots[some], said[some], strict=True) if text]
            await self._set([key for key, _ in named], [text for _, text in named], b"")
        await self._drop(said)

    def _is_own(self, text: bytes) -> bool:
        return self._token.encode() in text.split(b" ")[1:2]

    async def _drop(self, said: Iterable[bytes]) -> None:
        """Drop what was remembered for the commands that these slots named."""
        pipe = self._store.redis.pipeline()
        for key, text in zip(self.slots, said, strict=True):
            if text:
                pipe.unlink(self._keys.changed(key, text.split()[1].decode()))
        await pipe.execute()

    async def _set(self, keys: Iterable[bytes], before: Iterable[bytes], after: bytes) -> None:
        since, calls = self._store.confirmation.begin(), []
        for key, said in zip(keys, before, strict=True):
            # Workers poll the pointer, and compare the epochs with each rating.
            beside = [key] if key in {self._keys.live, *self._partitions} else []
            epochs = self._epoch if key in self._partitions else b""
            calls.append(([self._keys.migration(key), *beside], [said, after, epochs]))
        for reply in await self._store.redis.call("set_stage", *calls):
            if reply[0] != b"OK":
                raise StoreMigrating("another command has taken this migration over, or given it up")
        # A replica that is promoted without it would take what is refused here.
        await self._store.confirmation.wait(since)


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
    """Fills the keys of the store that a namespace moves to, for one command. What another one has begun anew
    since is left alone: each write looks, in the same step, whether this command still fills the slot.
    """

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
