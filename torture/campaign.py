"""A torture: clients, faults and the auditor on one stack, for a while, by a seed.

Invariant: whatever was found wrong is in the report, with what repeats it; nothing of the stack stays behind.
"""

import asyncio
import os
import random
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from featurestore.errors import StoreError
from featurestore.store import Store
from foldin.errors import StoppedError
from foldin.progress import Shown
from processes.errors import CannotStartError, StackFailedError
from processes.settings import HIDDEN, choice, data_path, real, setting, whole
from torture.auditor import BACK, Auditor
from torture.calls import Caller, judge_log, open_session
from torture.checks import CONTEXT_FIELD, Checks
from torture.clients import SESSIONS, Operator, Session, Shared
from torture.faults import FAULTS, Scene, names_of
from torture.report import Report
from torture.stack import STORE_KINDS, StoreKind, running_stack
from torture.weakened import WEAKNESSES
from trainer.errors import ArchiveRefusedError

# So often all comes to rest and is checked whole.
CHECKPOINT_S = 45.0
# The archive is read whole each time: a second's work after an hour.
AUDIT_S = 7.0
# A process of a fit starts on busy cores, and compiles what it needs.
FIRST_WITHIN_S = 300.0
# Ratings that are acknowledged between two faults, and how long they may take: parts start on busy cores.
GOOD_CALLS, GOOD_WITHIN_S = 30, 15.0
# On top of that.
QUIET_S = (0.2, 1.2)
# What a power cut leaves of one folder cannot be tried where three servers have the data: every third seed
# has a replicated store, whose primary is replaced, in place of the faults of a single one.
REPLICATED_EACH = 3


@dataclass(frozen=True, slots=True)
class TortureOptions:
    """Options of `foldin torture`."""

    task: str | None = setting(
        None, "check the answers of an earlier run again, by its log", choice(("judge",)), flag="judge"
    )
    calls: Path | None = setting(None, "that log, a calls.jsonl", data_path, flag="CALLS")
    minutes: float = setting(10.0, "how long", real(0.1, 1e6))
    seed: int = setting(1, "of all that is random: clients, faults, and their order", whole(0))
    store: StoreKind | None = setting(
        None,
        "one server, a primary with replicas, or a cluster",
        choice(STORE_KINDS),
        metavar="KIND",
        shown="`replicas` for each third seed, else `one`",
    )
    data: Path | None = setting(
        None,
        "new folder for the stack and the log of all calls; it stays",
        data_path,
        metavar="DIR",
        shown="a temporary one, which stays where anything was wrong",
    )
    weakness: str | None = setting(
        None, "protection to take out; the torture must find it", choice(WEAKNESSES), flag="--break"
    )
    no_bar: bool = setting(False, HIDDEN)


def run_torture(options: TortureOptions) -> int:
    """Torture, or judge a log; print the report, and return the exit code."""
    if options.task is not None:
        if options.calls is None:
            raise CannotStartError("say which log: judge CALLS")
        report = judge_log(options.calls)
        print("\n".join(report.lines()))
        return int(bool(report.violations))
    folder = options.data or Path(tempfile.mkdtemp(prefix="foldin-torture-"))
    if folder.exists() and any(folder.iterdir()):
        raise CannotStartError(f"{folder} is not empty: --data takes a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    print(f"Torture of a stack in {folder}, all calls in {folder / 'calls.jsonl'}", flush=True)
    with Shown("Torturing, in seconds", hidden=options.no_bar) as shown:
        report = asyncio.run(
            torture(
                60.0 * options.minutes,
                options.seed,
                folder.resolve(),
                os.environ,
                weakness=options.weakness,
                kind=options.store or ("one" if options.seed % REPLICATED_EACH else "replicas"),
                shown=shown,
            )
        )
    print("\n".join(report.lines()))
    if report.violations:
        again = f"foldin torture --minutes {options.minutes:g} --seed {options.seed} --store {report.kind}"
        print(f"{len(report.violations):,} violations; again: {again}")
        return 1
    if options.data is None:
        shutil.rmtree(folder)
    print("Nothing was lost, stale, mixed, or not forgotten.")
    return 0


async def torture(
    seconds: float,
    seed: int,
    folder: Path,
    environment: Mapping[str, str],
    *,
    weakness: str | None = None,
    faults: Sequence[str] = (),
    kind: StoreKind = "one",
    patience: float = 1.0,
    shown: Shown | None = None,
) -> Report:
    """Torture a stack in `folder`; return what was found. `environment`: what its processes inherit;
    `faults`: names of `FAULTS`, all that its store can have where empty; `kind`: of the store; `patience`:
    how many times as long as promised is waited for rest; `shown`: is told of the seconds that are over. With
    a `weakness` it ends when anything was found but a stack that comes back late.

    Raises CannotStartError, StackFailedError.
    """
    report = Report(seed, kind)
    rng = random.Random(f"{seed}-faults")  # noqa: S311 - to be repeated, not secret
    async with running_stack(folder, environment, weakness, kind=kind) as stack:
        store = await Store.open(stack.settings.store, hot=False)
        try:
            await store.contexts.tell([CONTEXT_FIELD])
            async with open_session() as session:
                checks = Checks(report)
                caller = Caller(session, stack.urls, folder / "calls.jsonl", checks)
                shared = Shared(caller, checks)
                scene = Scene(stack, shared, rng)
                try:
                    operator = Operator(shared, seed)
                    first = await _first_history(operator, caller, store)
                    auditor = Auditor(stack, store, shared, first, patience=patience)
                    names = faults or names_of(kind)
                    alone = weakness is not None
                    await _run(scene, auditor, operator, seconds, names, first_is_enough=alone, shown=shown)
                finally:
                    caller.close()
        finally:
            await store.close()
    return report


async def _run(
    scene: Scene,
    auditor: Auditor,
    operator: Operator,
    seconds: float,
    names: Sequence[str],
    *,
    first_is_enough: bool,
    shown: Shown | None,
) -> None:
    shared, loop = scene.shared, asyncio.get_running_loop()
    until = loop.time() + seconds
    shared.open.set()
    work = [
        asyncio.create_task(each, name="torture")
        for each in (
            auditor.watch(),
            operator.run(),
            _auditing(auditor),
            *(Session(shared, number, shared.checks.report.seed).run() for number in range(SESSIONS)),
        )
    ]
    try:
        deck: list[str] = []
        while loop.time() < until:
            rest_at = min(until, loop.time() + CHECKPOINT_S)
            while loop.time() < rest_at:
                _raise_for(work)
                if shown is not None:
                    shown.done(round(loop.time() - until + seconds), round(seconds))
                # A busy machine makes a stack late, whatever protection it lacks.
                if first_is_enough and {check for _, check, _ in shared.checks.report.violations} - {BACK}:
                    return
                if not deck:
                    # Each once before any comes again.
                    deck = scene.rng.sample(names, len(names))
                name = deck.pop()
                await _good_calls(shared)
                await asyncio.sleep(scene.rng.uniform(*QUIET_S))
                shared.checks.report.faults[name] += await FAULTS[name](scene)
            await auditor.checkpoint()
    finally:
        for task in work:
            task.cancel()
        await asyncio.gather(*work, return_exceptions=True)


async def _first_history(operator: Operator, caller: Caller, store: Store) -> int:
    """Begin with ratings that can be learned; return their epoch. Raises StackFailedError."""
    with suppress(TimeoutError):
        async with asyncio.timeout(FIRST_WITHIN_S):
            while not (reply := await operator.begin_history()).ok:  # noqa: ASYNC110 -- trainers start
                await asyncio.sleep(1.0)
            # Where cores are busy the call is answered before its fit has ended.
            while (live := await store.generations.live()).pending or not live.generation:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
            caller.turned("first")
            return live.epoch
    raise StackFailedError(f"the stack does not take its first ratings: {reply.body}")


async def _good_calls(shared: Shared) -> None:
    """Wait until there is something to lose again, or it is clear that there will not be."""
    calls = shared.checks.report.calls["rate"]
    wanted = calls["ok"] + GOOD_CALLS
    with suppress(TimeoutError):
        async with asyncio.timeout(GOOD_WITHIN_S):
            while calls["ok"] < wanted:  # noqa: ASYNC110 -- calls come by themselves
                await asyncio.sleep(0.1)


async def _auditing(auditor: Auditor) -> None:
    while True:
        await asyncio.sleep(AUDIT_S)
        # What stands still for now is waited for at the checkpoints.
        with suppress(StoreError, StoppedError, CannotStartError, ArchiveRefusedError, TimeoutError):
            async with asyncio.timeout(AUDIT_S):
                await auditor.audit_archive()


def _raise_for(work: Sequence["asyncio.Task[None]"]) -> None:
    """Raise what ended one of the tasks: each runs until it is cancelled."""
    for task in work:
        if task.done():
            task.result()
