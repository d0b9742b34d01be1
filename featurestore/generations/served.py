"""Waiting until the services answer from a generation. Invariant: what is served was served after the wait
began, by every worker that was alive then.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Protocol

from featurestore.errors import GenerationUnknown
from featurestore.experiments import Experiments
from featurestore.generations.catalog import Generations
from featurestore.generations.live import LiveGeneration
from featurestore.namespace import StoredScale

# A worker beats twice a second; one that is silent for longer is gone or stuck and not waited for.
FRESH_BEAT_S = 2.0
# A worker that has not polled for so long may have missed a change of histories: it reads nothing of users
# until it has, which a change of histories waits for. A worker polls ten times a second.
FOLLOWED_S = 1.2
# A follower polls ten times a second: looking four times as often costs a call at most 25 ms more.
LOOK_AGAIN_S = 0.025


class Here(Protocol):
    """What this process serves and follows, as its follower says."""

    live: LiveGeneration | None
    experiments: Experiments


async def _looks(timeout_s: float) -> AsyncIterator[float]:
    """Yield for how many seconds was waited, again and again up to `timeout_s`, and once at least."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    while True:
        waited_s = loop.time() - began
        yield waited_s
        if waited_s >= timeout_s:
            return
        await asyncio.sleep(LOOK_AGAIN_S)


async def wait_until_served(
    generations: Generations,
    epoch: int,
    generation: int,
    timeout_s: float,
    *,
    here: Here | None = None,
    exactly: bool = False,
) -> bool:
    """Return whether every worker serves a generation, and `here` too; wait up to `timeout_s` for it.

    The generation that is live by then is as good, because it came after. `exactly`: it is not, as when the
    call goes back to an older one; a beat from before the call then says nothing, because that worker may
    have served another since. Raises `StoreError`.
    """
    async for waited_s in _looks(timeout_s):
        good = {(epoch, generation)}
        if not exactly:
            pointer = await generations.live()
            good.add((pointer.epoch, pointer.generation))
        live = None if here is None else here.live
        if here is None or (live is not None and (live.epoch, live.generation) in good):
            newer_than_s = waited_s if exactly else FRESH_BEAT_S
            alive = [each for each in await generations.workers() if each.age_s < FRESH_BEAT_S]
            if all(each.age_s < newer_than_s and (each.epoch, each.generation) in good for each in alive):
                return True
    return False


async def wait_for_scale(
    generations: Generations, scale: StoredScale, timeout_s: float, *, here: Here | None = None
) -> bool:
    """Return whether every worker serves a generation of the scale that was decided, and `here` too, or there
    is none at all yet; wait up to `timeout_s` for it.

    Raises `StoreError`.
    """
    async for waited_s in _looks(timeout_s):
        pointer = await generations.live()
        if not pointer.generation:
            return True
        # One that is removed meanwhile has given way to another.
        with contextlib.suppress(GenerationUnknown):
            meta = await generations.meta(pointer.epoch, pointer.generation)
            if not scale.outdated(meta.model, meta.summary.n_ratings):
                names = pointer.epoch, pointer.generation
                return await wait_until_served(generations, *names, timeout_s - waited_s, here=here)
    return False


async def wait_until_followed(
    generations: Generations, version: str, timeout_s: float, *, here: Here
) -> bool:
    """Return whether every worker follows the experiments of this version, and `here` too; wait up to
    `timeout_s` for it.

    Raises `StoreError`.
    """
    async for _ in _looks(timeout_s):
        workers = await generations.workers()
        others = all(worker.experiments == version for worker in workers if worker.age_s < FRESH_BEAT_S)
        # One whose beat is late has not told of itself.
        if others and here.experiments.version == version:
            return True
    return False
