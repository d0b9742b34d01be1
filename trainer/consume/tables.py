"""Rating events of the stream as tables of the archive. Invariant: nothing here changes a stream."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featurestore.codecs import FORGOTTEN_ROW
from featurestore.item_registry import ItemRegistry
from featurestore.ratings.stream import Events
from trainer.archive.events import make_table, string_array


@dataclass(frozen=True, slots=True)
class ItemIds:
    """Item rows (m,), ascending, and their ids."""

    rows: npt.NDArray[np.int64]
    ids: list[str]

    def of(self, rows: npt.NDArray[np.int64]) -> pa.StringArray:
        """Return the ids of `rows` (n,), all of which must be here."""
        where = np.searchsorted(self.rows, rows)
        return string_array([item_id.encode("utf-8", "surrogateescape") for item_id in self.ids]).take(
            pa.array(where)
        )


async def item_ids(rows: npt.NDArray[np.int64], registry: ItemRegistry) -> ItemIds:
    """Return the ids of the items in `rows`, each once.

    The registry is read again where another process has registered some of them. Raises `StoreUnavailable`.
    """
    distinct = np.unique(rows)
    known = distinct[distinct != FORGOTTEN_ROW]
    if len(known) and int(known[-1]) >= len(registry):
        await registry.refresh()
    size = len(registry)
    ids = [registry.id(row) if row < size else "" for row in distinct.tolist()]
    return ItemIds(distinct, ids)


def to_table(events: Events, new: npt.NDArray[np.int64], items: ItemIds) -> pa.Table:
    """Return the events at positions `new`, in order, as a table of the archive, marks of forgotten users
    included.
    """
    item_row = events.item_row[new]
    user_ids = string_array(events.users)
    return make_table(
        partition=events.partition[new],
        stream_ms=events.stream_ms[new],
        stream_seq=events.stream_seq[new],
        user_id=user_ids.take(pa.array(events.user[new])),
        n=events.n[new],
        item_row=item_row,
        item_id=items.of(item_row),
        rating=events.rating[new],
        time=events.time[new],
    )
