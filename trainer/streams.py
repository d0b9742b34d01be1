"""What the store says of an epoch's streams, beyond reading them. Invariant: nothing here changes a
stream.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featurestore.codecs import FORGOTTEN_ROW
from featurestore.connection import ReplyError, encode
from featurestore.items import ItemRegistry
from featurestore.store import Store
from featurestore.stream import Events
from trainer.events import START, Position, make_table, string_array


@dataclass(frozen=True, slots=True)
class Tail:
    """The end of one partition's stream: `last` id ever given, entries ever `added`, and how many are
    there now.
    """

    last: Position = START
    added: int = 0
    length: int = 0

    @property
    def trimmed(self) -> int:
        """Entries that were there and are gone."""
        return self.added - self.length


def parse_position(stream_id: str | bytes) -> Position:
    """`ms-seq` as a position."""
    text = stream_id.decode() if isinstance(stream_id, bytes) else stream_id
    ms, _, seq = text.partition("-")
    return int(ms), int(seq or 0)


def format_position(position: Position) -> str:
    """A position as `ms-seq`."""
    return f"{position[0]}-{position[1]}"


async def tails(store: Store, epoch: int) -> dict[int, Tail]:
    """The ends of all streams of an epoch, in one round trip; a stream without entries yet is left out.

    Raises `StoreUnavailable`.
    """
    connection = store.bulk
    keys = [store.keys.ratings(epoch, p) for p in range(store.config.partitions)]
    payload = b"".join([encode(b"XINFO", b"STREAM", key) for key in keys])
    found: dict[int, Tail] = {}
    for partition, reply in enumerate(await connection.execute(payload, len(keys))):
        if isinstance(reply, ReplyError):
            if "no such key" in str(reply):
                continue
            raise connection.failure(reply)
        facts = reply if isinstance(reply, dict) else dict(zip(reply[::2], reply[1::2], strict=True))
        found[partition] = Tail(
            parse_position(facts[b"last-generated-id"]), int(facts[b"entries-added"]), int(facts[b"length"])
        )
    return found


@dataclass(frozen=True, slots=True)
class ItemIds:
    """Item rows (m,), ascending, and their ids."""

    rows: npt.NDArray[np.int64]
    ids: list[str]

    def of(self, rows: npt.NDArray[np.int64]) -> pa.StringArray:
        """The ids of `rows` (n,), all of which are here."""
        where = np.searchsorted(self.rows, rows)
        return string_array([item_id.encode("utf-8", "surrogateescape") for item_id in self.ids]).take(
            pa.array(where)
        )


async def item_ids(rows: npt.NDArray[np.int64], registry: ItemRegistry) -> ItemIds:
    """The ids of the items in `rows`, each once; the registry is asked for those that others registered."""
    distinct = np.unique(rows)
    known = distinct[distinct != FORGOTTEN_ROW]
    if len(known) and int(known[-1]) >= len(registry):
        await registry.refresh()
    size = len(registry)
    ids = [registry.id(row) if row < size else "" for row in distinct.tolist()]
    return ItemIds(distinct, ids)


def to_table(events: Events, new: npt.NDArray[np.int64], items: ItemIds) -> pa.Table:
    """The events at positions `new`, in order, as archive columns; marks of forgotten users included."""
    item_row = events.item_row[new]
    user_ids = string_array(events.user_id)
    return make_table(
        partition=events.partition[new],
        stream_ms=events.stream_ms[new],
        stream_seq=events.stream_seq[new],
        user_id=user_ids if len(new) == len(user_ids) else user_ids.take(pa.array(new)),
        n=events.n[new],
        item_row=item_row,
        item_id=items.of(item_row),
        rating=events.rating[new],
        time=events.time[new],
    )
