"""The compiled fold-in: made once for a machine by a process of its own, loaded behind the start of others.

Invariant: until it is there, and where it cannot be had, numpy folds in; a process that serves compiles
nothing, and loads no code that another user could have written.

    python -m featurestore.users.compiled [FILE]     make it, unless it is there; what `make setup` does
"""

import asyncio
import contextlib
import fcntl
import logging
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import factors
from factors import fold_in_code
from processes.blocking import python_command
from processes.child import Child, ChildSpec

log = logging.getLogger(__name__)

# Beside the bytecode, as Python keeps it; else in the cache folder of the service.
HOME = Path(factors.__file__).parent / "__pycache__"
# Another worker makes it meanwhile; it takes 15 s of a core.
_LOOK_AGAIN_S = 1.0
# Behind those that answer users; with `SCHED_IDLE` a busy machine would never have it.
_NICENESS = 10


async def load_fold_in(cache: Path) -> None:
    """Load the code, kept beside the package or in the folder `cache`, and have it made where it is missing.

    From then on this process folds in with it. Logs a warning where it cannot be had.
    """
    if fold_in_code.in_use():
        return
    try:
        await _load(cache)
    except Exception as exc:  # noqa: BLE001 - whatever it is, numpy gives the same rows
        log.warning("folds in without compiled loops: %r", exc)


async def _load(cache: Path) -> None:
    name = await asyncio.to_thread(file_name)
    paths = [folder / name for folder in (HOME, cache)]
    code = await asyncio.to_thread(kept, paths)
    path = next(
        (path for path in paths if _is_private(path.parent) and os.access(path.parent, os.W_OK)), None
    )
    if code is None and path is not None:
        code = await _made(path)
    if code is not None:
        await asyncio.to_thread(fold_in_code.use, code)
        log.info("folds in with compiled loops")


def file_name() -> str:
    """Return what the file of the code is called on this machine and for this version."""
    return f"fold-in-{fold_in_code.fingerprint()}.o"


def make(path: Path) -> None:
    """Make the code and keep it at `path`, whole or not at all. Raises OSError and what numba raises."""
    code = fold_in_code.compile_code()
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as unfinished:
        unfinished.write(fold_in_code.sealed(code))
    # Where it is installed for all users, they read it.
    Path(unfinished.name).chmod(0o644)
    Path(unfinished.name).replace(path)


async def _made(path: Path) -> bytes | None:
    """Return the code that a child makes, of this worker or of another one of this machine."""
    with (path.with_suffix(".lock")).open("ab") as lock:
        while True:
            if _locked(lock.fileno()):
                break
            await asyncio.sleep(_LOOK_AGAIN_S)
        if (code := await asyncio.to_thread(kept, [path])) is not None:
            return code
        child = Child(
            ChildSpec("compile", tuple(python_command("featurestore.users.compiled", str(path)))), None
        )
        try:
            await child.start()
            await child.wait()
        finally:
            await child.stop()
    code = await asyncio.to_thread(kept, [path])
    if code is None:
        log.warning("folds in without compiled loops: they could not be made: %s", child.last_line)
    return code


def _locked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def kept(paths: Sequence[Path]) -> bytes | None:
    """Return the code in the first of these files that has it; None where none does."""
    for path in paths:
        with contextlib.suppress(OSError):
            if _is_private(path.parent) and _is_private(path):
                code = fold_in_code.unsealed(path.read_bytes())
                if code is not None:
                    return code
    return None


def _is_private(path: Path) -> bool:
    """Whether none but this user, and root, can write there."""
    try:
        status = path.stat()
    except OSError:
        return False
    return status.st_uid in {0, os.getuid()} and not status.st_mode & 0o022


def main(argv: Sequence[str]) -> int:
    """Make the code unless it is there; return 0."""
    path = Path(argv[0]) if argv else HOME / file_name()
    if kept([path]) is None:
        os.nice(_NICENESS)
        _goes_first()
        make(path)
    return 0


def _goes_first() -> None:
    """Where memory runs out let Linux end this process, not those that answer users."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", "ascii")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
