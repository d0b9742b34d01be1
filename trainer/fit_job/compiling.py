"""Has the loops of a fit compiled in a process of its own, `python -m trainer.fit_job.compiling`.

Invariant: what compiling takes is free again before the fit needs it; where it fails, the fit compiles. One
process compiles at a time: those that come meanwhile find what it made.
"""

import asyncio
import contextlib
import fcntl
import os
import sys
from collections.abc import Callable
from pathlib import Path

from factors import MANY_RATINGS, fit_code
from featurestore.users.compiled import HOME, load_fold_in
from processes.blocking import BlockingChild, python_command
from processes.child import Child, ChildSpec
from trainer import log

# It takes 25 s of a core, which may be a tenth of one.
_LONGEST_S = 600.0
# Ratings come by thousands or hundreds of thousands a second: by the time that a fit needs the loops, those
# that began here are there or nearly so.
_SOON, _LOOK_S = MANY_RATINGS // 2, 1.0
# Of the trainer, whose children have it too, and of fits beside that. Workers that answer users on the same
# cores go first, but POST /train is waited for: no idle priority.
NICENESS = 5


async def compile_ahead(archived: Callable[[], int]) -> None:
    """Have the loops compiled once as many events are `archived` as may soon be too many for a fit without
    them. Returns when that is done; where it fails, the log says so.
    """
    while archived() < _SOON:  # noqa: ASYNC110 -- each batch would have to tell; a look costs nothing
        await asyncio.sleep(_LOOK_S)
    command = tuple(python_command("trainer.fit_job.compiling"))
    child = Child(ChildSpec("loops", command, captured="stderr"), None)
    try:
        async with asyncio.timeout(_LONGEST_S):
            await child.start()
            code = await child.wait()
        if code != 0:
            log.warning("loops_not_compiled_apart", exit_code=code, why=child.last_line)
    except (OSError, TimeoutError) as exc:
        log.warning("loops_not_compiled_apart", why=str(exc) or f"not done after {_LONGEST_S:.0f} s")
    finally:
        await child.stop()


async def load_fold_in_here() -> None:
    """Have this process fold users and items in by compiled loops, which are kept where those of fits are."""
    await load_fold_in(await asyncio.to_thread(_folder))


def _folder() -> Path:
    folder = Path(os.environ.get("NUMBA_CACHE_DIR") or HOME)
    with contextlib.suppress(OSError):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def compile_apart(n_events: int) -> None:
    """Return when there are compiled loops for a fit of so many ratings, or of a ranking head of so many
    events, if it needs any and they can be kept. The process that compiles them ends with this one; where it
    fails, the log says so, and the fit compiles them itself.
    """
    if n_events < MANY_RATINGS or not fit_code.is_missing():
        return
    command = python_command("trainer.fit_job.compiling")
    try:
        with BlockingChild(command, None) as child:
            code = child.wait(_LONGEST_S)
    except (OSError, TimeoutError) as exc:
        log.warning("loops_not_compiled_apart", why=str(exc))
        return
    if code != 0:
        log.warning("loops_not_compiled_apart", exit_code=code)


def main() -> int:
    """Compile what is missing; return 0."""
    if fit_code.is_missing():
        folder = fit_code.folder_of(fit_code.ALWAYS[0])
        folder.mkdir(parents=True, exist_ok=True)
        # It ends with this process, however that ends.
        with (folder / "compiling.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if fit_code.is_missing() and not fit_code.take_brought():
                fit_code.compile_loops()
    return 0


if __name__ == "__main__":
    sys.exit(main())
