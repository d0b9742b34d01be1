"""Which scale a file of ratings has, for a store that has none yet.

Invariant: unless a person says another, every rating in the file that is a number is on the scale that is
returned.
"""

import asyncio
from math import inf

import numpy as np
from rich.console import Console

from factors import Scale
from featurestore.settings import DEFAULT_SCALE, format_scale, parse_scale
from foldin.files.reading import RatingsFile
from foldin.files.rows import RowRules, distinct, scale_for
from foldin.progress import ImportProgress
from processes.errors import CannotStartError


async def scale_of_file(file: RatingsFile, told: str | None, console: Console) -> Scale:
    """Return the scale that a person has `told`, else the one of the ratings in a file, the default one where
    it has none. On a terminal a person may say another. Raises CannotStartError where that is no scale.
    """
    told = told or await _asked(file, console)
    try:
        return parse_scale(told)
    except ValueError as exc:
        raise CannotStartError(f"the scale {exc}: give one with --scale") from None


async def _asked(file: RatingsFile, console: Console) -> str:
    seen, ratings = np.empty(0), 0
    with ImportProgress(console, "Looking at the scale", file.total_bytes) as progress:
        batches = file.read(RowRules(Scale(-inf, inf), 0.0))
        # A thread: 2 MB of text are decoded at a time.
        while (batch := await asyncio.to_thread(next, batches, None)) is not None:
            seen, ratings = distinct(np.concatenate((seen, batch.seen))), ratings + len(batch)
            progress.update(file.position, ratings)
    if not seen.size:
        return format_scale(DEFAULT_SCALE)
    found = format_scale(scale_for(seen))
    console.print(f"The ratings run from {seen[0]:g} to {seen[-1]:g}: the scale {found}.", markup=False)
    if console.is_terminal and console.is_interactive:
        console.print(f"The store has none yet. Enter takes {found}; or type another, low:high[:step].")
        try:
            return console.input("scale: ").strip() or found
        except EOFError:
            # There is no one to ask.
            return found
    return found
