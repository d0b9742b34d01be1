"""Trainers for tests: in this process, or as a child that can be killed at a named step."""

import asyncio
import os
import pickle
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock

import pytest

from featurestore.commands import CommandKind, Outcome
from featurestore.settings import StoreSettings
from featurestore.store import Store
from processes.blocking import BlockingChild
from tests.support.event_tables import events_in, free
from tests.support.servers import store_environment
from tests.support.waiting import PATIENCE_S, some, wait_until, wait_until_async
from trainer.app import Trainer
from trainer.archive.epoch_archive import EpochArchive
from trainer.archive.segments import SegmentName, Step, no_step
from trainer.errors import CannotStartError, SegmentGoneError
from trainer.schedule import Rules
from trainer.settings import TrainerSettings

Archived = tuple[str, int, str, float]


def trainer_settings(store: StoreSettings, folder: Path, **changes: Any) -> TrainerSettings:
    """Settings of a trainer that fits only when asked, and takes over within seconds."""
    base = TrainerSettings(
        store=store,
        archive_dir=folder,
        rules=Rules(10**9, 10**6, growth=0.0),
        linger_s=0.05,
        lease_ttl_s=10.0,
        grace_s=10.0,
    )
    return replace(base, **changes)


@asynccontextmanager
async def running_trainer(settings: TrainerSettings, *, step: Step = no_step) -> AsyncIterator[Trainer]:
    """A trainer in this process for the length of a `with`; whatever ended it early is raised at the end."""
    trainer, stop = Trainer(settings, step=step), asyncio.Event()
    task = asyncio.create_task(trainer.run(stop), name="trainer under test")
    try:
        yield trainer
    finally:
        stop.set()
        await asyncio.wait_for(task, PATIENCE_S)


class Crash(BaseException):
    """Stands for the end of a process: nothing after it is done."""


def crash_at(name: str, occurrence: int = 1) -> Step:
    """Ends what comes to a step so often."""
    seen = 0

    def step(at: str) -> None:
        nonlocal seen
        seen += at == name
        if at == name and seen == occurrence:
            raise Crash

    return step


@contextmanager
def cut_off(of: type, tidying: str) -> Iterator[None]:
    """What crashes within tidies nothing up, for it is as if it was killed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(of, tidying, AsyncMock())
        yield


async def crashed_at(settings: TrainerSettings, step: str) -> None:
    """Run a trainer in this process until it reaches a step, and end it there."""
    with pytest.raises(Crash):
        await Trainer(settings, step=crash_at(step)).run(asyncio.Event())


async def refuses(settings: TrainerSettings) -> str:
    """The line with which a trainer in this process ends because a person must do something first."""
    with pytest.raises(CannotStartError) as caught:
        await Trainer(settings).run(asyncio.Event())
    return str(caught.value)


def running_fits(parent: int, module: str = "trainer.fit_job.job") -> list[int]:
    """The processes that fit for this one; `module`: what others do for it."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        # One may end meanwhile.
        with suppress(OSError):
            status = (path / "status").read_text()
            if module.encode() in (path / "cmdline").read_bytes() and f"PPid:\t{parent}\n" in status:
                found.append(int(path.name))
    return found


def started_fit() -> int:
    """The one process that fits for this one, at the step "fit:started"."""
    # A process has its command line only some microseconds after its parent goes on.
    (pid,) = wait_until(lambda: running_fits(os.getpid()), "the process of the fit")
    return pid


async def until_live(store: Store, generation: int = 1, epoch: int = 1) -> None:
    """Wait until this generation, or a later one, is live."""
    await wait_until_async(
        store.generations.live,
        f"generation {generation} of epoch {epoch} live",
        lambda pointer: (pointer.epoch, pointer.generation) >= (epoch, generation),
    )


async def until_drained(store: Store, epoch: int = 1) -> None:
    """Wait until all that was acknowledged is in the archive."""
    await wait_until_async(lambda: store.stream.lag(epoch), "streams archived", lambda n: not sum(n.values()))


async def fitted(store: Store, kind: CommandKind = "refit", epoch: int = 1) -> int:
    """Ask for a fit; return the number of the generation that it published."""
    outcome = await outcome_of(store, await store.commands.ask(kind, epoch=epoch))
    assert outcome.state == "done", outcome
    return some(outcome.generation)


async def outcome_of(store: Store, command: str) -> Outcome:
    # A fit takes seconds, and a minute and more of a machine that is busy.
    return some(await store.commands.wait(command, 100))


async def erased(store: Store, user_id: bytes, epoch: int = 1) -> None:
    """Forget a user as a service does, and wait until nothing has the user any more."""
    at_ms = (await store.ratings.forget(user_id)).at_ms
    # By the id that the mark in the stream gives, too: it is one erasure.
    outcome = await outcome_of(store, await store.commands.ask_to_erase(user_id, epoch=epoch, at_ms=at_ms))
    assert outcome.state == "done", outcome


def archived(settings: TrainerSettings, epoch: int = 1, *, path: Path | None = None) -> list[Archived]:
    """(user, n, item, rating) of each archived event of an epoch, or of a folder, in the order of the log."""
    folder = path or settings.archive_folder / f"epoch-{epoch:06d}"
    try:
        return events_in(_uncovered(folder), "user_id", "n", "item_id", "rating")
    except SegmentGoneError:
        # Merged just now.
        return archived(settings, epoch, path=path)


def _uncovered(folder: Path) -> list[Path]:
    files = [(SegmentName.parse(path.name), path) for path in folder.glob("*.parquet")]
    named = sorted((name, path) for name, path in files if name is not None)
    return [path for name, path in named if not any(other.covers(name) for other, _ in named)]


def reopened(settings: TrainerSettings, epoch: int = 1) -> EpochArchive:
    """The archive of an epoch when no trainer holds it."""
    return EpochArchive(settings.archive_folder / f"epoch-{epoch:06d}", epoch, guard=free)


CHILD = """
import asyncio, pickle, signal, sys, threading
from featurestore.telemetry.log_lines import configure
from processes.loop import stop_event
from trainer.app import Trainer

settings = pickle.loads(bytes.fromhex(sys.argv[1]))
victim, occurrence, how = sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
seen = 0

def step(name):
    global seen
    seen += name == victim
    if name == victim and seen == occurrence:
        # To this thread, which goes no further: to the process, any of its threads takes it, some time.
        signal.pthread_kill(threading.get_ident(), how)

exec(sys.argv[5])

async def main():
    await Trainer(settings, step=step).run(stop_event())

configure("INFO", "text")
asyncio.run(main())
"""


def trainer_environment(settings: TrainerSettings) -> dict[str, str]:
    return {
        **os.environ,
        **store_environment(settings.store),
        "FOLDIN_ARCHIVE_DIR": str(settings.archive_dir),
    }


async def refused(settings: TrainerSettings, *flags: str) -> str:
    """The one line with which `python -m trainer` ends, by itself and with code 2."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "trainer", *flags),
        env=trainer_environment(settings),
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(PATIENCE_S):
            _, output = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    text = output.decode()
    assert process.returncode == 2, text
    assert "Traceback" not in text
    (line,) = [line for line in text.splitlines() if line.startswith("trainer: ")]
    return line


class ChildTrainer:
    """A trainer that signals itself at a step, the `occurrence`th time; `patch`: Python to run first."""

    def __init__(
        self,
        settings: TrainerSettings,
        step: str = "never",
        occurrence: int = 1,
        how: signal.Signals = signal.SIGKILL,
        patch: str = "",
    ) -> None:
        self.log = settings.archive_dir.with_name("trainer.log")
        arguments = [pickle.dumps(settings).hex(), step, str(occurrence), str(int(how)), patch]
        self.process = BlockingChild([sys.executable, "-c", CHILD, *arguments], self.log)

    @property
    def ended(self) -> bool:
        return self.process.code is not None

    @property
    def frozen(self) -> bool:
        """Whether it has stopped, and does nothing until SIGCONT."""
        return Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"

    def end(self, how: signal.Signals = signal.SIGKILL) -> int:
        return self.process.end(how, 30)
