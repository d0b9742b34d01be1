"""What the store says of an epoch's streams, beyond reading them. Invariant: nothing here changes a
stream.
"""

from dataclasses import dataclass

import numpy as np
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


async def to_table(events: Events, rows: np.ndarray, registry: ItemRegistry) -> pa.Table:
    """The events at `rows` (positions, in order) as archive columns, with the ids of their items."""
    item_row = events.item_row[rows]
    distinct, inverse = np.unique(item_row, return_inverse=True)
    known = distinct[distinct != FORGOTTEN_ROW]
    if len(known) and int(known[-1]) >= len(registry):
        await registry.refresh()
    ids = [
        registry.id(int(row)).encode("utf-8", "surrogateescape") if int(row) < len(registry) else b""
        for row in distinct
    ]
    user_ids = string_array(events.user_id)
    return make_table(
        partition=events.partition[rows],
        stream_ms=events.stream_ms[rows],
        stream_seq=events.stream_seq[rows],
        user_id=user_ids if len(rows) == len(user_ids) else user_ids.take(pa.array(rows)),
        n=events.n[rows],
        item_row=item_row,
        item_id=string_array(ids).take(pa.array(inverse)),
        rating=events.rating[rows],
        time=events.time[rows],
    )
