"""Masks of filters, kept for the next request that has the same filter.

Invariant: a mask is that of the columns as they are; one that a column has changed under is not used again.
"""

import asyncio
from functools import partial

from factors import Bools
from service.rules.columns import Columns, InThread
from service.rules.filters import Filter, HasId, Rows, mask_of

# Rows times conditions that are looked at in less than 2 ms; more are in a thread.
_QUICK = 2_000_000
# Values that are looked up in 1 ms.
_QUICK_VALUES = 2_000
# A front-end has some ten filters, and a mask of a million items is a megabyte.
_KEPT_BYTES = 32_000_000

# Of a filter and what may be shown: as many as a ranking remembers.
_PAIRS_KEPT = 32

_Key = tuple[Filter, int, tuple[int, ...]]


class Masks:
    """The masks of filters over `columns`; those that were used last are kept."""

    def __init__(self, columns: Columns, *, kept_bytes: int = _KEPT_BYTES) -> None:
        self._columns = columns
        self._kept_bytes = kept_bytes
        self._kept: dict[_Key, Bools] = {}
        self._bytes = 0
        self._pairs: dict[tuple[int, int], tuple[Bools, Bools, Bools]] = {}

    async def mask(
        self, wanted: Filter, n: int, rows: Rows, in_thread: InThread = asyncio.to_thread
    ) -> Bools:
        """Return which of the first `n` item rows pass (n,), not to be written to. `rows`: of the ids that it
        names; `in_thread`: where it is made if that takes long.
        """
        keys = [None if isinstance(leaf, HasId) else leaf.key for leaf in wanted.leaves()]
        quick = n * len(keys) <= _QUICK and wanted.n_values <= _QUICK_VALUES
        make = partial(mask_of, wanted, self._columns, n, rows)
        if None in keys:
            # An item may be given its row at any time.
            return await self._columns.read(make, in_thread, quick=quick)
        columns = [self._columns.column(key) for key in keys if key is not None]
        key = (wanted, n, tuple(-1 if column is None else column.changes for column in columns))
        mask = self._kept.get(key)
        if mask is None:
            mask = await self._columns.read(make, in_thread, quick=quick)
            mask.flags.writeable = False
        self._keep(key, mask)
        return mask

    def _keep(self, key: _Key, mask: Bools) -> None:
        """Keep a mask as what was used last."""
        if self._kept.pop(key, None) is None:
            self._bytes += mask.nbytes
        self._kept[key] = mask
        while self._bytes > self._kept_bytes and len(self._kept) > 1:
            self._bytes -= self._kept.pop(next(iter(self._kept))).nbytes

    def both(self, first: Bools, second: Bools) -> Bools:
        """Return what two masks (n,) pass (n,); of a `first` that is kept, the same object for the same two,
        not to be written to: a ranking may remember what it allows.
        """
        if first.flags.writeable:
            # Made for one call, as it names ids.
            return first & second
        key = id(first), id(second)
        pair = self._pairs.pop(key, None) or (first, second, first & second)
        pair[2].flags.writeable = False
        # With the two, so that no other mask has the address of one meanwhile.
        self._pairs[key] = pair
        if len(self._pairs) > _PAIRS_KEPT:
            del self._pairs[next(iter(self._pairs))]
        return pair[2]
