"""Item ids and their rows. Invariant: a row is given once and never changes, so what is cached here is never
wrong.

The store gives rows in one function call; the registry of an epoch that was removed gives none any more.
"""

import asyncio
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from factors import Int64s
from featurestore.client import Client
from featurestore.errors import (
    EpochGone,
    RegistryFull,
    StoreDamaged,
    StoreError,
    StoreUnavailable,
)
from featurestore.id_columns import IdOrder, Ids, RowTable
from featurestore.keys import Keys, shown_key, whole
from featurestore.wire.connection import Connection
from featurestore.wire.functions import call_many
from featurestore.wire.resp import encode

# Bounds how long one call keeps the store, and one reply this event loop, to about 2 ms.
IDS_AT_ONCE = 2_000
# The live epoch, the one that is being prepared, and the one before during the change.
EPOCHS_KEPT = 3
# So few ids are found in the dictionary in less time.
FEW_IDS = 64
# A table of so many ids is built in 3 ms; a larger one in a thread.
INLINE_IDS = 16_384
# So many ids that are not in the table are no reason to build it anew.
UNSEATED_IDS = 1_000
# Nor is this part of them: all the tables of a growing epoch then cost at most nine times the last.
UNSEATED_PART = 1 / 8


class ItemRegistry:
    """The item ids of one epoch, cached as they are met.

    `row(item_id)`: the row of an item, None where it is not known here.
    """

    def __init__(
        self, keys: Keys, connection: Connection, client: Client, epoch: int, max_items: int
    ) -> None:
        self._items, self._order = keys.items(epoch), keys.order(epoch)
        self._keys = keys
        self._connection = connection
        self._client = client
        self._epoch = epoch
        self._max_items = max_items
        self._rows: dict[bytes, int] = {}
        # Bound once: it is asked for each pair of a prediction.
        self.row = self._rows.get
        # Ids of the rows from 0 on, and of rows behind the first that is not known here.
        self._ids: list[bytes] = []
        self._ahead: dict[int, bytes] = {}
        self._table = RowTable([])
        self._building: asyncio.Future[RowTable] | None = None
        self._by_id = IdOrder(self._ids)
        # Rows from 0 on that no failover takes back: events that name others wait for the registry's server.
        self.confirmed = 0

    def __len__(self) -> int:
        """Rows from 0 on whose ids are all known here."""
        return len(self._ids)

    @property
    def ids(self) -> Sequence[bytes]:
        """The ids of these rows. It only grows: any thread may read it."""
        return self._ids

    def find(self, item_ids: Ids) -> Int64s:
        """Return the row of each item (m,), -1 where it is not known here."""
        if len(item_ids) > FEW_IDS:
            self._keep_table()
            rows = self._table.find(item_ids)
        else:
            rows = np.full(len(item_ids), -1, dtype=np.int64)
        elsewhere = np.flatnonzero(rows < 0)
        if len(elsewhere):
            get = self._rows.get
            rows[elsewhere] = [get(item_id, -1) for item_id in item_ids.take(elsewhere)]
        return rows

    def _keep_table(self) -> None:
        """See that the table has nearly all items; it may have them a little later."""
        known, seated = len(self._ids), len(self._table)
        if (
            known - seated <= max(UNSEATED_IDS * (seated > 0), UNSEATED_PART * seated)
            or self._building is not None
        ):
            return
        if known <= INLINE_IDS:
            self._table = RowTable(self._ids)
            return
        # A copy: the list grows meanwhile, and the table counts it more than once.
        self._building = asyncio.get_running_loop().run_in_executor(None, RowTable, self._ids[:])
        self._building.add_done_callback(self._built)

    def _built(self, table: "asyncio.Future[RowTable]") -> None:
        if table is self._building:
            self._building = None
            self._table = table.result()

    def id(self, row: int) -> str:
        """The id of a row. Raises `KeyError` for one that is not known here; `refresh` reads new ones."""
        item_id = self._ids[row] if 0 <= row < len(self._ids) else self._ahead[row]
        return item_id.decode("utf-8")

    async def page(self, n: int, *, prefix: bytes = b"", after: bytes = b"") -> list[bytes]:
        """Return up to `n` ids in their order, of those that `ids` has and that begin with `prefix`, behind
        `after`. The first page sorts them all, in a thread.
        """
        by_id = self._by_id
        await by_id.grow()
        return by_id.page(n, prefix=prefix, after=after)

    async def rows(self, item_ids: Sequence[bytes]) -> list[int | None]:
        """Return the row of each item, None where it is not registered; one round trip for unknown ones."""
        blocks = self._unknown(item_ids)
        if not blocks:
            # Answered though the store is away.
            return [self._rows[item_id] for item_id in item_ids]
        # On the wire: a prediction of an item that is not known here asks for it each time.
        calls = [encode(b"HMGET", self._items, *block) for block in blocks]
        replies = await call_many(self._connection, calls)
        for block, rows in zip(blocks, replies, strict=True):
            # The empty id is the mark of the registry itself.
            found = {
                whole(row, self._items): item_id for item_id, row in zip(block, rows, strict=True) if row
            }
            self._require_one_row_each(found)
            self.learn(found.keys(), found.values())
        return [self._rows.get(item_id) for item_id in item_ids]

    def knows(self, item_ids: Sequence[bytes]) -> bool:
        """Whether all of these are known here."""
        return all(item_id in self._rows for item_id in item_ids)

    async def register(self, item_ids: Sequence[bytes]) -> list[int]:
        """Return the row of each item; new ones get theirs, all or none. A round trip for each 2,000 that are
        not known here, and twice as many where these are more.

        Safe to repeat. Raises `RegistryFull`, `EpochGone`. In a race for the last rows whole blocks of 2,000
        may be registered.
        """
        blocks = self._unknown(item_ids)
        if len(blocks) > 1:
            # The first block is registered only if there is room for all that are new.
            await self.rows(item_ids)
            blocks = self._unknown(item_ids)
        for number, block in enumerate(blocks):
            more = sum(map(len, blocks[1:])) if number == 0 else 0
            args = [b"%d" % self._max_items, b"%d" % more, *block]
            (reply,) = await self._client.call("register_items", ([self._items, self._order], args))
            if reply[0] == b"GONE":
                raise EpochGone(self._epoch)
            if reply[0] == b"FULL":
                raise RegistryFull(f"there is room for {self._max_items} items, no more may be added")
            rows = [whole(row, self._items) for row in reply[1]]
            self._require_one_row_each(dict(zip(rows, block, strict=True)))
            self.learn(rows, block)
        return [self._rows[item_id] for item_id in item_ids]

    def _require_one_row_each(self, found: Mapping[int, bytes]) -> None:
        """Raise `StoreDamaged` where a row is that of another item."""
        for row, item_id in found.items():
            if row < len(self._ids) and self._ids[row] != item_id:
                why = f"it gives row {row} to two items"
                raise StoreDamaged(f"{shown_key(self._items)} or {shown_key(self._order)}", why)

    def _unknown(self, item_ids: Sequence[bytes]) -> list[list[bytes]]:
        """Those that are not known here, each once, in blocks."""
        unknown = [item_id for item_id in dict.fromkeys(item_ids) if item_id not in self._rows]
        return [unknown[start : start + IDS_AT_ONCE] for start in range(0, len(unknown), IDS_AT_ONCE)]

    async def refresh(self) -> None:
        """Read the rows that others registered, in small steps."""
        # What lay still for a while may have changed on its disk: of all items, when they are first read.
        fresh = not len(self)
        while True:
            known = len(self)
            ids: Any = await self._client.lrange(self._order, known, known + IDS_AT_ONCE - 1)
            if fresh and ids:
                await self._require_listed(known, ids)
            self.follow(known, ids)
            if len(ids) < IDS_AT_ONCE:
                return

    async def _require_listed(self, first: int, ids: Sequence[bytes]) -> None:
        """Raise `StoreDamaged` where the list by row and the rows by id do not say the same."""
        rows: Any = await self._client.hmget(self._items, ids)
        # Of an epoch that was removed in between there is nothing.
        for row, found in enumerate(rows if any(rows) else (), first):
            if found != b"%d" % row:
                why = f"row {row} of the list has another row, or none, by its id"
                raise StoreDamaged(f"{shown_key(self._items)} or {shown_key(self._order)}", why)

    def follow(self, first: int, ids: Sequence[bytes]) -> None:
        """Take in the ids of the rows from `first` on, from the list of the store. Raises `StoreDamaged`."""
        try:
            b"\n".join(ids).decode("utf-8")
        except UnicodeDecodeError as exc:
            raise StoreDamaged(shown_key(self._order), "an item id is not UTF-8") from exc
        self.learn(range(first, first + len(ids)), ids)

    async def require_whole(self) -> None:
        """Raise `StoreDamaged` where the list by row lacks items that have a row."""
        pipe = self._client.pipeline()
        # In this order: an item that comes in between is in the list.
        pipe.hlen(self._items)
        pipe.llen(self._order)
        given, listed = await pipe.execute()
        # One field of the hash is the mark of the registry itself.
        if listed < given - 1:
            why = f"it lists {listed} items, and {given - 1} have a row"
            raise StoreDamaged(shown_key(self._order), why)

    def learn(self, rows: Collection[int], ids: Collection[bytes]) -> None:
        """Take in rows of items, as the store has them."""
        # Not always the next ones: another process may have registered those between.
        self._rows.update(zip(ids, rows, strict=True))
        known = len(self._ids)
        self._ahead.update((row, item_id) for row, item_id in zip(rows, ids, strict=True) if row >= known)
        while (item_id := self._ahead.pop(len(self._ids), None)) is not None:
            self._ids.append(item_id)

    def confirm(self, rows: int) -> None:
        """Take in that so many rows, from 0 on, are where the durability wants them."""
        self.confirmed = max(self.confirmed, rows)

    async def verify(self, client: Client) -> None:
        """Forget everything if the store no longer says the same: it lost its end in a failover, or all."""
        last = max(self._ahead, default=len(self._ids) - 1)
        if last < 0:
            return
        try:
            same = await client.lindex(self._order, last) == (self._ahead.get(last) or self._ids[last])
        except StoreUnavailable:
            raise
        except StoreError:
            # What has taken the list's place is of another type.
            same = False
        if not same:
            self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self.confirmed = 0
        self._rows.clear()
        # Anew, because a thread may read the list.
        self._ids, self._ahead = [], {}
        self._table, self._building = RowTable([]), None
        self._by_id = IdOrder(self._ids)


class ItemRegistries:
    """The item registries of the epochs that are in use."""

    def __init__(self, keys: Keys, connection: Connection, client: Client, max_items: int) -> None:
        self._keys = keys
        self._connection = connection
        self._client = client
        self._max_items = max_items
        self._by_epoch: dict[int, ItemRegistry] = {}

    def of(self, epoch: int) -> ItemRegistry:
        """Return the item registry of an epoch."""
        registry = self._by_epoch.pop(epoch, None)
        if registry is None:
            registry = ItemRegistry(self._keys, self._connection, self._client, epoch, self._max_items)
        # By last use, not by number: the live epoch has the lowest one after histories that were given up.
        self._by_epoch[epoch] = registry
        if len(self._by_epoch) > EPOCHS_KEPT:
            del self._by_epoch[next(iter(self._by_epoch))]
        return registry

    async def verify(self, client: Client) -> None:
        """Forget what the store no longer says."""
        for registry in list(self._by_epoch.values()):
            await registry.verify(client)

    def clear(self) -> None:
        """Forget everything, in every registry that is in use."""
        for registry in self._by_epoch.values():
            registry.clear()
