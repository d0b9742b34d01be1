"""Fits in a thread of the test instead of a process of their own, whose imports take longer than they do."""

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

import msgspec

from trainer.fit_job.job import Answer, FitRequest, answer_of


class _Fit:
    """What `processes.messages.helper` gives, for one request."""

    def __init__(self) -> None:
        self._answers: asyncio.Queue[bytes] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None

    async def ask(self, payload: bytes) -> bytes:
        loop, request = asyncio.get_running_loop(), msgspec.msgpack.decode(payload, type=FitRequest)

        def tell(answer: Answer) -> None:
            loop.call_soon_threadsafe(self._answers.put_nowait, msgspec.msgpack.encode(answer))

        def fit() -> None:
            # A process has descriptors of its own, and closes them.
            own = replace(request, descriptors=tuple(map(os.dup, request.descriptors)))
            if request.user_attributes is not None:
                own = replace(own, user_attributes=os.dup(request.user_attributes))
            tell(answer_of(own, tell))

        self._task = asyncio.create_task(asyncio.to_thread(fit), name="fit of a test")
        return await self.receive()

    async def receive(self) -> bytes:
        """Return the next answer; raise what ended the fit without one."""
        assert self._task is not None
        answer = asyncio.create_task(self._answers.get())
        await asyncio.wait({answer, self._task}, return_when=asyncio.FIRST_COMPLETED)
        if not answer.done() and self._answers.empty():
            answer.cancel()
            await self._task
        return await answer

    async def end(self) -> None:
        """Wait for the thread, which nothing can end."""
        if self._task is not None:
            await asyncio.wait({self._task})


@asynccontextmanager
async def fit_in_thread(_module: str, _descriptors: Sequence[int] = ()) -> AsyncIterator[_Fit]:
    """Stand in for `processes.messages.helper` in `trainer.fit_job.process`."""
    fit = _Fit()
    try:
        yield fit
    finally:
        await fit.end()
