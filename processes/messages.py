"""Messages between a process and a helper: a Python module that it runs in a process of its own.

Invariant: a helper never outlives the process that started it. A message is bytes behind their length (4
bytes, little endian), in on the helper's standard input, out on its standard output; what they mean is for
the two ends to agree.
"""

import asyncio
import contextlib
import os
import sys
import threading
from collections.abc import AsyncIterator, Sequence

from processes import module_name

# Up to 4 GB; the largest message, a batch of records, has some megabytes.
_LENGTH_BYTES = 4
# The exit code of a helper whose parent is gone; no process reads it.
ORPHANED = 3


class HelperEndedError(Exception):
    """The helper did not start, has ended, or is too slow. It cannot be used any more."""


class Helper:
    """The parent's end of a running helper, made by `helper`."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        writer: asyncio.StreamWriter,
        reader: asyncio.StreamReader,
    ) -> None:
        self._process = process
        self._writer = writer
        self._reader = reader

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    async def receive(self) -> bytes:
        """Return its next message. Raises `HelperEndedError` where it ends before that.

        A call that was cancelled may have read a part of a message: the helper must be ended then.
        """
        try:
            length = int.from_bytes(await self._reader.readexactly(_LENGTH_BYTES), "little")
            return await self._reader.readexactly(length)
        except (OSError, asyncio.IncompleteReadError) as exc:
            raise await self._ended() from exc

    async def ask(self, message: bytes, within_s: float | None = None) -> bytes:
        """Hand over a message; return the one that comes next. Raises `HelperEndedError`, also where none
        comes in time.
        """
        try:
            async with asyncio.timeout(within_s):
                self._writer.writelines((len(message).to_bytes(_LENGTH_BYTES, "little"), message))
                await self._writer.drain()
                return await self.receive()
        except TimeoutError as exc:
            raise HelperEndedError(f"no answer within {within_s:g} s") from exc
        except OSError as exc:
            raise await self._ended() from exc

    async def _ended(self) -> HelperEndedError:
        code = await self._process.wait()
        how = f"by signal {-code}" if code < 0 else f"with code {code}"
        return HelperEndedError(f"it ended without a word, {how}")

    async def end(self) -> None:
        """Kill it and wait for its end. Does nothing where it has ended."""
        self._writer.close()
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            # A caller that is cancelled must not leave it running either.
            await asyncio.shield(self._process.wait())


@contextlib.asynccontextmanager
async def helper(module: str, descriptors: Sequence[int] = ()) -> AsyncIterator[Helper]:
    """Run `module` as a helper until the block ends, however it ends. It has these open `descriptors`, under
    the same numbers. Raises `HelperEndedError`.
    """
    # The end of its standard input tells the helper that its parent is gone. Not `die_with_parent`:
    # with a hook before the program starts, Python cannot use vfork, and a fork copies the page tables of the
    # parent. For a trainer with gigabytes in memory that stops the event loop.
    try:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", module_name(module)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            pass_fds=descriptors,
        )
    except OSError as exc:
        raise HelperEndedError(f"it cannot be started: {exc}") from exc
    assert process.stdin is not None
    assert process.stdout is not None
    running = Helper(process, process.stdin, process.stdout)
    try:
        yield running
    finally:
        await running.end()


class Parent:
    """The helper's end: messages of the process that started it. `request`: the first, which says what to
    do.
    """

    def __init__(self) -> None:
        """Wait for the request. Ends this process where the parent is gone before it."""
        self._input = sys.stdin.buffer
        # What a library prints must not break into a message: from here on it goes to the standard error.
        sys.stdout.flush()
        self._output = os.fdopen(os.dup(1), "wb")
        os.dup2(2, 1)
        if (request := self.receive()) is None:
            sys.exit(ORPHANED)
        self.request = request

    def receive(self) -> bytes | None:
        """Wait for the next message; None when the parent has closed its end, or is gone."""
        length = self._input.read(_LENGTH_BYTES)
        message = self._input.read(int.from_bytes(length, "little"))
        complete = len(length) == _LENGTH_BYTES and len(message) == int.from_bytes(length, "little")
        return message if complete else None

    def send(self, message: bytes) -> None:
        """Send a message. Raises BrokenPipeError where the parent is gone."""
        self._output.writelines((len(message).to_bytes(_LENGTH_BYTES, "little"), message))
        self._output.flush()

    def end_with_it(self) -> None:
        """End this process when the parent is gone, whatever it is doing. No message can be received after
        this.

        It must be left by `os._exit`: the thread that waits holds the standard input.
        """
        threading.Thread(target=self._wait_for_end, name="end with the parent", daemon=True).start()

    def _wait_for_end(self) -> None:
        while self._input.read(4096):
            pass
        os._exit(ORPHANED)
