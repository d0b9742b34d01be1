"""Item ids and their rows. Invariant: a row is given once and never changes, so what is cached here is never
wrong.

The store gives rows in one function call; the registry of an epoch that was removed gives none any more.
"""

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np

from factors import Int64s
from featurestore.client import Client
from featurestore.errors import EpochGone, RegistryFull
from featurestore.id_columns import Ids
from featurestore.keys import Keys
from featurestore.row_table import RowTable
from featurestore.wire.connection import Connection, Execute
from featurestore.wire.functions import call_many, commands, encode_call
from featurestore.wire.resp import ReplyError, encode

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
        self._connection = connection
        self._client = client
        self._epoch = epoch
        self._max_items = max_items
        self._rows: dict[bytes, int] = {}
        self.row = self._rows.get
        self._ids: list[bytes | None] = []
        self._known = 0
        self._table = RowTable([])
        self._building: asyncio.Future[RowTable] | None = None

    def __len__(self) -> int:
        """Rows from 0 on whose ids are all known here."""
        return self._known

    @property
    def ids(self) -> Sequence[bytes | None]:
        """The id of each row, None where it is not known here. It only grows: any thread may read it."""
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
        known, seated = self._known, len(self._table)
        if (
            known - seated <= max(UNSEATED_IDS * (seated > 0), UNSEATED_PART * seated)
            or self._building is not None
        ):
            return
        ids = [item_id for item_id in self._ids[:known] if item_id is not None]
        if known <= INLINE_IDS:
            self._table = RowTable(ids)
            return
        self._building = asyncio.get_running_loop().run_in_executor(None, RowTable, ids)
        self._building.add_done_callback(self._built)

    def _built(self, table: "asyncio.Future[RowTable]") -> None:
        if table is self._building:
            self._building = None
            self._table = table.result()

    def id(self, row: int) -> str:
        """The id of a row. Raises `KeyError` for one that is not known here; `refresh` reads new ones."""
        item_id = self._ids[row] if 0 <= row < len(self._ids) else None
        if item_id is None:
            raise KeyError(row)
        return item_id.decode("utf-8")

    async def rows(self, item_ids: Sequence[bytes]) -> list[int | None]:
        """Return the row of each item, None where it is not registered; one round trip for unknown ones."""
        unknown = [item_id for item_id in dict.fromkeys(item_ids) if item_id not in self._rows]
        blocks = [unknown[start : start + IDS_AT_ONCE] for start in range(0, len(unknown), IDS_AT_ONCE)]
        replies = await commands(self._connection, [(b"HMGET", self._items, *block) for block in blocks])
        for block, rows in zip(blocks, replies, strict=True):
            for item_id, row in zip(block, rows, strict=True):
                # The empty id is the mark of the registry itself.
                if row:
                    self._learn(item_id, int(row))
        return [self._rows.get(item_id) for item_id in item_ids]

    async def register(self, item_ids: Sequence[bytes]) -> list[int]:
        """Return the row of each item; new ones get theirs. One round trip, none when all are known here.

        Safe to repeat. Raises `RegistryFull` (nothing was registered, or only whole blocks of 2,000),
        `EpochGone`.
        """
        unknown = [item_id for item_id in dict.fromkeys(item_ids) if item_id not in self._rows]
        if unknown:
            limit = b"%d" % self._max_items
            blocks = [unknown[start : start + IDS_AT_ONCE] for start in range(0, len(unknown), IDS_AT_ONCE)]
            calls = [
                encode_call("register_items", [self._items, self._order], [limit, *block]) for block in blocks
            ]
            for block, reply in zip(blocks, await call_many(self._connection, calls), strict=True):
                if reply[0] == b"GONE":
                    raise EpochGone(self._epoch)
                if reply[0] == b"FULL":
                    raise RegistryFull(f"there are {self._max_items} items already, no more may be added")
                for item_id, row in zip(block, reply[1], strict=True):
                    self._learn(item_id, int(row))
        return [self._rows[item_id] for item_id in item_ids]

    async def refresh(self) -> None:
        """Read the rows that others registered, in small steps."""
        while True:
            known = self._known
            ids: Any = await self._client.lrange(self._order, known, known + IDS_AT_ONCE - 1)
            self.take(known, ids)
            if len(ids) < IDS_AT_ONCE:
                return

    def take(self, start: int, ids: Sequence[bytes]) -> None:
        """Learn ids that were read from the store, of the rows from `start` on."""
        if start == self._known == len(self._ids):
            self._ids += ids
            self._rows.update(zip(ids, range(start, start + len(ids)), strict=True))
            self._known += len(ids)
            return
        for row, item_id in enumerate(ids, start):
            self._learn(item_id, row)

    async def verify(self, execute: Execute) -> None:
        """Forget everything if the store no longer says the same: it lost its end in a failover, or all."""
        if not self._ids:
            return
        last = len(self._ids) - 1
        (reply,) = await execute(encode(b"LINDEX", self._order, b"%d" % last), 1)
        if isinstance(reply, ReplyError) or reply != self._ids[last]:
            self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self._rows.clear()
        self._ids = []
        self._known = 0
        self._table, self._building = RowTable([]), None

    def _learn(self, item_id: bytes, row: int) -> None:
        ids = self._ids
        if row >= len(ids):
            ids.extend([None] * (row + 1 - len(ids)))
        ids[row] = item_id
        self._rows[item_id] = row
        while self._known < len(ids) and ids[self._known] is not None:
            self._known += 1


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

    async def verify(self, execute: Execute) -> None:
        """Forget what the store no longer says."""
        for registry in list(self._by_epoch.values()):
            await registry.verify(execute)
