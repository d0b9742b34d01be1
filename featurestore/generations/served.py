"""Waiting until the services answer from a generation. Invariant: what is served was served after the wait
began, by every worker that was alive then.
"""

import asyncio
import contextlib
from collections.abc import Iterable
from typing import Protocol

from featurestore.errors import GenerationUnknown
from featurestore.experiments.definition import Experiments
from featurestore.generations.catalog import Generations
from featurestore.generations.live import LiveGeneration
from featurestore.generations.manifest import Worker
from featurestore.namespace import StoredScale

# A worker beats twice a second; one that is silent for longer is gone or stuck and not waited for.
FRESH_BEAT_S = 2.0
# A worker that has not polled for so long may have missed a change of histories: it reads nothing of users
# until it has, which a change of histories waits for. A worker polls ten times a second.
FOLLOWED_S = 1.2
# A follower polls ten times a second: looking four times as often costs a call at most 25 ms more.
LOOK_AGAIN_S = 0.025


class Serving(Protocol):
    """What this process serves, as its follower says."""

    live: LiveGeneration | None


async def wait_until_served(
    generations: Generations,
    epoch: int,
    generation: int,
    timeout_s: float,
    *,
    here: Serving | None = None,
    exactly: bool = False,
) -> bool:
    """Return whether every worker serves a generation, and `here` too; wait up to `timeout_s` for it.

    The generation that is live by then is as good, because it came after. `exactly`: it is not, as when the
    call goes back to an older one; a beat from before the call then says nothing, because that worker may
    have served another since. Raises `StoreError`.
    """
    loop = asyncio.get_running_loop()
    began = loop.time()
    while True:
        waited_s = loop.time() - began
        good = {(epoch, generation)}
        if not exactly:
            pointer = await generations.live()
            good.add((pointer.epoch, pointer.generation))
        live = None if here is None else here.live
        if here is None or (live is not None and (live.epoch, live.generation) in good):
            workers = await generations.workers()
            if all_serve(workers, good, waited_s if exactly else FRESH_BEAT_S):
                return True
        if waited_s >= timeout_s:
            return False
        await asyncio.sleep(LOOK_AGAIN_S)


async def wait_for_scale(
    generations: Generations, scale: StoredScale, timeout_s: float, *, here: Serving | None = None
) -> bool:
    """Return whether every worker serves a generation of the scale that was decided, and `here` too, or there
    is none at all yet; wait up to `timeout_s` for it.

    Raises `StoreError`.
    """
    loop = asyncio.get_running_loop()
    ends = loop.time() + timeout_s
    while True:
        pointer = await generations.live()
        if not pointer.generation:
            return True
        # One that is removed meanwhile has given way to another.
        with contextlib.suppress(GenerationUnknown):
            meta = await generations.meta(pointer.epoch, pointer.generation)
            if not scale.outdated(meta.model, meta.summary.n_ratings):
                names = pointer.epoch, pointer.generation
                return await wait_until_served(generations, *names, max(0.0, ends - loop.time()), here=here)
        if loop.time() >= ends:
            return False
        await asyncio.sleep(LOOK_AGAIN_S)


class Following(Protocol):
    """What this process follows, as its follower says."""

    experiments: Experiments


async def wait_until_followed(
    generations: Generations, version: str, timeout_s: float, *, here: Following
) -> bool:
    """Return whether every worker follows the experiments of this version, and `here` too; wait up to
    `timeout_s` for it.

    Raises `StoreError`.
    """
    loop = asyncio.get_running_loop()
    ends = loop.time() + timeout_s
    while True:
        workers = await generations.workers()
        others = all(worker.experiments == version for worker in workers if worker.age_s < FRESH_BEAT_S)
        # One whose beat is late has not told of itself.
        if others and here.experiments.version == version:
            return True
        if loop.time() >= ends:
            return False
        await asyncio.sleep(LOOK_AGAIN_S)


def all_serve(workers: Iterable[Worker], good: set[tuple[int, int]], newer_than_s: float) -> bool:
    """Whether each worker that is alive has told within `newer_than_s` that it serves one of `good`."""
    return all(
        worker.age_s < newer_than_s and (worker.epoch, worker.generation) in good
        for worker in workers
        if worker.age_s < FRESH_BEAT_S
    )
