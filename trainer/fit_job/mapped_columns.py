"""The ratings of a fit in a file without a name, mapped: while the fit has its own order of them, no memory.

Invariant: they read the same, whatever the system has let go; nothing is written to them.
"""

import mmap
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from trainer.fit_job.ratings import FitInput


def in_file(data: FitInput, folder: Path) -> tuple[FitInput, Callable[[], None]]:
    """Return `data` with ratings and events that lie in a file on the disk of `folder`, 24 and 25 bytes each,
    and what lets their memory go until they are read again. Where the disk has no room, the same `data`.
    """
    maps: list[mmap.mmap] = []
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            ratings, choices = data.ratings, data.choices
            columns: dict[str, npt.NDArray[Any]] = {
                "user_row": ratings.user_row,
                "item_row": ratings.item_row,
                "value": ratings.value,
                "time": ratings.time,
            }
            if ratings.context is not None:
                columns["context"] = ratings.context
            ratings = replace(ratings, **{name: _mapped(each, file, maps) for name, each in columns.items()})
            if choices is not None:
                of_events = ("user_row", "item_row", "value", "time", "type_code")
                events = {name: _mapped(getattr(choices, name), file, maps) for name in of_events}
                choices = replace(choices, **events)
    except OSError:
        return data, _nothing

    def let_go() -> None:
        for each in maps:
            each.madvise(mmap.MADV_DONTNEED)

    return replace(data, ratings=ratings, choices=choices), let_go


def _mapped(array: npt.NDArray[Any], file: IO[bytes], maps: list[mmap.mmap]) -> npt.NDArray[Any]:
    if array.nbytes == 0:
        return array
    page = mmap.ALLOCATIONGRANULARITY
    start = -(-file.seek(0, 2) // page) * page
    file.seek(start)
    file.write(np.ascontiguousarray(array).data.cast("B"))
    file.flush()
    # A copy on writing, so that loops take the arrays for what others are.
    found = mmap.mmap(file.fileno(), array.nbytes, access=mmap.ACCESS_COPY, offset=start)
    maps.append(found)
    return np.frombuffer(found, dtype=array.dtype).reshape(array.shape)


def _nothing() -> None:
    """Keep what is in memory."""
