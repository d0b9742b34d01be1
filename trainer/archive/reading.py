"""Rating events as columns, of many segments or histories. Invariant: one code stands for one id in all of
them, and events keep the order of the log, or of their history.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from factors import Float32s
from featurestore.codecs import ENTRY_BYTES, ENTRY_DTYPE, rated_items
from featurestore.contexts import codec as contexts
from featurestore.ratings.stream import Events
from featurestore.store import Store
from featurestore.users.records import StoredUser
from trainer.archive.events import CONTEXT, SCHEMA, codes_of, contexts_in, make_table

Retried = Callable[..., Awaitable[Any]]
"""Awaits a call with its arguments until the store takes it."""


@dataclass
class Part:
    """The events of a segment, `count` of them: their numbers, their ids, and what was told with them."""

    count: int
    numbers: dict[str, npt.NDArray[Any]]
    ids: dict[str, pa.ChunkedArray]
    context: Float32s | None


def read_part(columns: Iterable[tuple[pa.Field, pa.ChunkedArray]], numbers: Sequence[str]) -> Part:
    """Return the events of a segment, or of a table, column by column; `numbers`: which of these to keep.
    Raises what reading `columns` raises.
    """
    found, told = Part(0, {}, {}, None), None
    for field, column in columns:
        name, found.count = field.name, len(column)
        if name in ("user_id", "item_id"):
            # As codes: a Python object for each of millions would take longer than a fit.
            found.ids[name] = column.dictionary_encode()
        elif name == CONTEXT.name:
            told = column
        elif name in numbers:
            # A copy: what is read by Arrow goes with the column.
            found.numbers[name] = np.array(column.to_numpy())
    # Last: by now it is known that the bytes are those that were written.
    found.context = None if told is None else contexts_in(told)
    return found


class EventColumns(NamedTuple):
    """Events (m,): `user` and `item` by `user_ids` and `item_ids`, `numbers` by name; `contexts`: of each
    part how many events it has, and theirs.
    """

    user: npt.NDArray[np.int32]
    user_ids: pa.StringArray
    item: npt.NDArray[np.int32]
    item_ids: pa.StringArray
    numbers: dict[str, npt.NDArray[Any]]
    contexts: list[tuple[int, Float32s | None]]


def join_parts(parts: Sequence[Part], numbers: Sequence[str]) -> EventColumns:
    """Return events one behind the other. Takes the columns of `parts`, which were read with these `numbers`:
    of many ratings every one counts.
    """
    # The first has nothing, so that no part at all is no special case.
    parts = [read_part(zip(SCHEMA, SCHEMA.empty_table().columns, strict=True), numbers), *parts]
    columns = {name: np.concatenate([part.numbers.pop(name) for part in parts]) for name in numbers}
    users, items = (codes_of([part.ids.pop(name) for part in parts]) for name in ("user_id", "item_id"))
    return EventColumns(*users, *items, columns, [(part.count, part.context) for part in parts])


def events_of(users: Sequence[StoredUser]) -> tuple[Events, npt.NDArray[Any], bool]:
    """Return the histories of users as events, `n` being the place there, without their places in a stream;
    the same as entries, of `ENTRY_DTYPE`; and whether no context was found to be damaged.
    """
    counts = np.array([len(user.history) // ENTRY_BYTES for user in users], dtype=np.int64)
    # One buffer for all: an array for each of a hundred thousand users costs more than their ratings.
    entries = np.frombuffer(b"".join([user.history for user in users]), dtype=ENTRY_DTYPE)
    owner, time = np.repeat(np.arange(len(users)), counts), entries["time"].astype(np.float64)
    given = [k for k, user in enumerate(users) if user.contexts]
    every, of_entry = contexts.of_users([users[k].contexts for k in given], given)
    events = Events(
        partition=np.array([user.partition for user in users], dtype=np.int32)[owner],
        stream_ms=np.zeros(len(entries), dtype=np.int64),
        stream_seq=np.zeros(len(entries), dtype=np.int64),
        users=[user.user_id for user in users],
        user=owner,
        n=np.arange(len(entries)) - np.repeat(np.cumsum(counts) - counts, counts),
        item_row=entries["item_row"].astype(np.int64),
        type_code=np.ascontiguousarray(entries["type_code"]),
        rating=entries["rating"].astype(np.float64),
        time=time,
        context=contexts.match(rated_items(entries), time, every, (owner, of_entry)),
    )
    return events, entries, every.sound


async def scan_users(
    store: Store, epoch: int, retried: Retried
) -> AsyncIterator[tuple[int, list[StoredUser]]]:
    """Yield all users of an epoch, some at a time, after how many partitions are done; one may come twice."""
    for partition in range(store.keys.partitions):
        cursor, more = 0, True
        while more:
            cursor, found = await retried(store.users.scan, epoch, partition, cursor)
            more = cursor != 0
            yield partition + (not more), found


async def waiting_tables(store: Store, epoch: int) -> AsyncIterator[pa.Table]:
    """Yield what waits in the streams of an epoch, marks of forgotten users among it."""
    registry = store.items(epoch)
    # Of one step: a few milliseconds of the store.
    async for events in store.stream.rest(epoch, {}, count=1_000):
        if events.n_items > len(registry):
            await registry.refresh()
        yield make_table(events, registry.ids)
        # What comes in from here on is not asked for: of a store in use the streams have no end.
        if not events.more:
            break
