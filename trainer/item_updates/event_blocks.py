"""Events by item, in few arrays. Invariant: those of an item stand in the order in which they were added, and
an event takes 25 bytes, however few of an item come at a time, and in a block with contexts theirs.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from factors import Float32s, Int64s
from featurestore.contexts.codec import joined

EVENT = np.dtype([("slot", np.int32), ("rating", np.float64), ("time", np.float64), ("type_code", np.uint8)])
Events = npt.NDArray[np.void]
"""Events (m,) of type `EVENT`."""

# Blocks that together have more stay apart: to sort so many takes 20 ms.
_MOST_JOINED = 262_144


@dataclass(frozen=True, slots=True)
class _Block:
    """`events` (m,), item by item, with their `context` (m, k), None where none was given. Those of
    `item_rows[j]`, ascending, begin at `starts[j]`.
    """

    item_rows: npt.NDArray[np.int32]
    starts: Int64s
    events: Events
    context: Float32s | None

    def of_item(self, row: int) -> slice:
        j = int(np.searchsorted(self.item_rows, row))
        if j == len(self.item_rows) or self.item_rows[j] != row:
            return slice(0, 0)
        return slice(int(self.starts[j]), int(self.starts[j + 1]))

    def item_row(self) -> npt.NDArray[np.int32]:
        """Return the item of each event (m,)."""
        return np.repeat(self.item_rows, np.diff(self.starts))


class EventBlocks:
    """Events in blocks, each sorted by item: the next one is about half as large as the one before it."""

    def __init__(self) -> None:
        self._blocks: list[_Block] = []

    def __len__(self) -> int:
        return sum(len(block.events) for block in self._blocks)

    def add(self, item_row: npt.NDArray[np.integer], events: Events, context: Float32s | None) -> None:
        """Add events (m,) of these items (m,), with their contexts (m, k) where any was given."""
        block = _sorted(item_row.astype(np.int32), events, context)
        while self._blocks:
            before = self._blocks[-1]
            together = len(before.events) + len(block.events)
            if len(before.events) > 2 * len(block.events) or together > _MOST_JOINED:
                break
            block = _join(self._blocks.pop(), block)
        self._blocks.append(block)

    def of_item(self, row: int) -> list[tuple[Events, Float32s | None]]:
        """Return the events of an item, one part behind the other, each with its contexts; views."""
        found = []
        for block in self._blocks:
            part = block.of_item(row)
            if part.stop > part.start:
                found.append((block.events[part], None if block.context is None else block.context[part]))
        return found

    def take_back(self, slot: int) -> list[int]:
        """Take the ratings of the user in a slot back; return the items that they were of."""
        rows: set[int] = set()
        for block in self._blocks:
            own = np.flatnonzero(block.events["slot"] == slot)
            block.events["rating"][own] = np.nan
            rows.update(block.item_row()[own].tolist())
        return sorted(rows)


def _sorted(item_row: npt.NDArray[np.int32], events: Events, context: Float32s | None) -> _Block:
    order = np.argsort(item_row, kind="stable")
    rows, first = np.unique(item_row[order], return_index=True)
    starts = np.append(first, len(order)).astype(np.int64)
    return _Block(rows, starts, events[order], None if context is None else context[order])


def _join(first: _Block, second: _Block) -> _Block:
    rows = np.concatenate([first.item_row(), second.item_row()])
    context = joined([(len(block.events), block.context) for block in (first, second)])
    return _sorted(rows, np.concatenate([first.events, second.events]), context)
