"""`foldin import`: the ratings of a file go to a running Foldin, each once or, harmlessly, again.

`refuse` reads the whole file before the first rating is written, so that a file with a bad row changes
nothing.
"""

import asyncio
import json
import os
import shlex
import time
from collections import Counter
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.console import Console

from featurestore.settings import format_scale
from foldin.errors import ImportStoppedError
from foldin.files.layout import find_layout
from foldin.files.positions import Position, PositionFile
from foldin.files.progress import ImportProgress
from foldin.files.reading import RatingsFile
from foldin.files.rows import BadRow, Batch, RowRules, Values, distinct, pieces, suggested_scale
from foldin.settings import DEFAULT_API, FrontDoorSettings, ImportOptions
from foldin.sinks import ApiSink, Row, RowRefusedError, Sink, SinkBusyError, StoreSink
from processes.errors import CannotStartError

DEFAULT_DATA = Path("data")
SHOWN_ROWS = 20
SAVE_EVERY_S = 1.0
# A store that restarts is back within seconds; a trainer that is behind archives at every moment.
GIVE_UP_SILENT_S = 60.0
GIVE_UP_FULL_S = 300.0
MAX_WAIT_S = 5.0
LANES = 2


@dataclass(slots=True)
class Findings:
    """What was found on the way.

    How many bad rows of which kind, the first of them, and which ratings occur.
    """

    bad: int = 0
    off_scale: int = 0
    first: list[BadRow] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)
    seen: Values = field(default_factory=lambda: np.empty(0))

    def add(self, batch: Batch) -> None:
        """Take in what a batch had."""
        self.seen = distinct(np.concatenate((self.seen, batch.seen)))
        for row in batch.bad:
            self.refused(row)

    def refused(self, row: BadRow) -> None:
        """Take in one bad row."""
        self.bad += 1
        self.off_scale += row.off_scale
        self.kinds[row.reason.partition(":")[0] if not row.off_scale else "rating is off the scale"] += 1
        if len(self.first) < SHOWN_ROWS:
            self.first.append(row)


def run_import(options: ImportOptions, settings: FrontDoorSettings) -> int:
    """Import a file; the exit code.

    Raises CannotStartError (nothing was written) and ImportStoppedError (some was).
    """
    console = Console(highlight=False, soft_wrap=True)
    layout = find_layout(options.path, options.format, options.columns)
    console.print(f"{options.path}: {layout.describe()}", markup=False)
    file = RatingsFile(options.path, layout)
    importer = Importer(file, options, settings, console)
    try:
        asyncio.run(importer.run())
    except KeyboardInterrupt:
        console.print(importer.how_to_go_on("stopped"), markup=False)
        return 130
    return 0


class Importer:
    """One import, from the choice of the target to the last line."""

    def __init__(
        self, file: RatingsFile, options: ImportOptions, settings: FrontDoorSettings, console: Console
    ) -> None:
        self._file = file
        self._options = options
        self._settings = settings
        self._console = console
        self._findings = Findings()
        self._written = 0
        self._position: Position | None = None
        self._now = time.time()

    async def run(self) -> None:
        """Import the file. Raises CannotStartError and ImportStoppedError."""
        sink = await open_sink(self._options, self._settings)
        try:
            await self._import(sink)
        finally:
            await sink.close()

    async def _import(self, sink: Sink) -> None:
        positions = PositionFile(self._settings.state_dir, self._options.path, sink.name)
        start = self._start(positions, sink)
        rules = RowRules(sink.scale, self._now)
        if self._options.on_bad == "refuse":
            await self._check(rules)
        began = time.monotonic()
        await self._write(sink, rules, start, positions)
        positions.remove()
        took_s = max(time.monotonic() - began, 1e-6)
        self._console.print(
            f"{self._written:,} ratings written to {sink.name} in {took_s:.1f} s, "
            f"{self._written / took_s:,.0f} a second."
        )
        if self._findings.bad:
            self._report()
            self._console.print(f"{self._findings.bad:,} bad rows were left out.")

    def _start(self, positions: PositionFile, sink: Sink) -> Position:
        stat = self._options.path.stat()
        fresh = Position(stat.st_size, stat.st_mtime_ns, sink.epoch, 0, 0)
        if not self._options.resume:
            return fresh
        kept = positions.load()
        if kept is None:
            self._console.print("No import of this file was stopped: it begins at the start.")
            return fresh
        if (kept.size, kept.modified_ns) != (fresh.size, fresh.modified_ns):
            raise CannotStartError(
                f"{self._options.path} has changed since: import it without --resume, from its start"
            )
        if kept.epoch != fresh.epoch:
            self._console.print("A new history has begun since: the import begins at the start.")
            return fresh
        self._console.print(f"Going on after line {kept.line:,} ({kept.ratings:,} ratings written before).")
        return kept

    async def _check(self, rules: RowRules) -> None:
        ratings = 0
        with ImportProgress(self._console, "Checking", self._file.total_bytes) as progress:
            batches = self._file.read(rules)
            while (batch := await asyncio.to_thread(_next, batches)) is not None:
                self._findings.add(batch)
                ratings += len(batch)
                progress.update(self._file.position, ratings)
        if not self._findings.bad:
            return
        self._report()
        advice = "mend them, or leave them out with --on-bad skip"
        if self._findings.off_scale:
            advice = f"{self._scale_advice(rules)}; or {advice}"
        raise CannotStartError(
            f"{self._findings.bad:,} bad rows in {self._options.path}, so nothing was written: {advice}"
        )

    async def _write(self, sink: Sink, rules: RowRules, start: Position, positions: PositionFile) -> None:
        self._position = start
        saved = time.monotonic()
        checked = self._options.on_bad == "refuse"
        with ImportProgress(self._console, "Importing", self._file.total_bytes) as progress:
            batches = self._file.read(rules)
            # The next stretch is decoded while this one is written.
            coming = asyncio.create_task(asyncio.to_thread(_next, batches), name="decode")
            try:
                while (found := await coming) is not None:
                    coming = asyncio.create_task(asyncio.to_thread(_next, batches), name="decode")
                    batch = found.after(start.line)
                    if not checked:
                        self._findings.add(batch)
                    await self._give_all(sink, batch, progress)
                    self._position = Position(
                        start.size,
                        start.modified_ns,
                        start.epoch,
                        max(batch.last_line, start.line),
                        start.ratings + self._written,
                    )
                    if time.monotonic() - saved > SAVE_EVERY_S:
                        positions.save(self._position)
                        saved = time.monotonic()
            finally:
                if self._written:
                    positions.save(self._position)
                await asyncio.gather(coming, return_exceptions=True)
                batches.close()

    async def _give_all(self, sink: Sink, batch: Batch, progress: ImportProgress) -> None:
        """Write a stretch in lanes that go side by side.

        While the store works for one, the next call is prepared. All ratings of a user are in one lane, in
        the order of the file, so that the last one for an item wins.
        """

        async def lane(number: int) -> None:
            for rows, lines in pieces(batch.lane(number, LANES), sink.batch_rows):
                await self._give(sink, rows, lines, progress)
                self._written += len(rows)
                progress.update(self._file.position, self._written)

        results = await asyncio.gather(*(lane(number) for number in range(LANES)), return_exceptions=True)
        for result in results:
            if result is not None:
                raise result

    async def _give(self, sink: Sink, rows: list[Row], lines: list[int], progress: ImportProgress) -> None:
        """Write one batch, however long the other side is busy, within reason.

        Drops refused rows from both lists.
        """
        began = time.monotonic()
        while rows:
            try:
                await sink.write(rows)
            except SinkBusyError as exc:
                limit_s = GIVE_UP_FULL_S if exc.full else GIVE_UP_SILENT_S
                if time.monotonic() - began > limit_s:
                    what = "is a trainer running?" if exc.full else "is it running?"
                    reason = f"nothing could be written for {limit_s:.0f} s ({exc}): {what}"
                    raise ImportStoppedError(self.how_to_go_on(reason)) from exc
                progress.note(f"waiting: {exc}")
                await asyncio.sleep(min(exc.retry_after_s, MAX_WAIT_S))
            except RowRefusedError as exc:
                if not 0 <= exc.position < len(rows):
                    raise ImportStoppedError(f"{sink.name} refuses the ratings: {exc}") from exc
                line = lines[exc.position]
                if self._options.on_bad == "refuse":
                    raise ImportStoppedError(
                        self.how_to_go_on(f"{sink.name} refuses line {line} of {self._options.path}: {exc}")
                    ) from exc
                self._findings.refused(BadRow(line, str(exc)))
                del rows[exc.position], lines[exc.position]
            else:
                progress.note("")
                return

    def _report(self) -> None:
        for row in self._findings.first:
            what = "row" if self._file.layout.kind == "parquet" else "line"
            self._console.print(f"  {what} {row.line:,}: {row.reason}", markup=False)
        if self._findings.bad > len(self._findings.first):
            rest = ", ".join(f"{count:,} x {kind}" for kind, count in self._findings.kinds.most_common(8))
            self._console.print(f"  ... in all: {rest}", markup=False)

    def _scale_advice(self, rules: RowRules) -> str:
        seen = self._findings.seen
        return (
            f"its ratings run from {seen[0]:g} to {seen[-1]:g}, the scale is {format_scale(rules.scale)}; "
            "it is fixed when a namespace is created, so begin a new one with "
            f"FOLDIN_SCALE={suggested_scale(seen)} and another FOLDIN_NAMESPACE or --data"
        )

    def how_to_go_on(self, reason: str) -> str:
        """What happened, how far the import is, and the command that goes on there."""
        if self._position is None or not self._position.ratings:
            return f"{reason}; nothing was written"
        parts = ["foldin", "import", str(self._options.path)]
        for flag, value in (("--url", self._options.url), ("--data", self._options.data)):
            if value is not None:
                parts += [flag, str(value)]
        if self._options.format != "auto":
            parts += ["--format", self._options.format]
        if self._options.columns:
            parts += ["--columns", ",".join(f"{role}={name}" for role, name in self._options.columns.items())]
        if self._options.on_bad != "refuse":
            parts += ["--on-bad", self._options.on_bad]
        command = shlex.join([*parts, "--resume"])
        return f"{reason}; {self._position.ratings:,} ratings are written, go on with: {command}"


def _next(batches: Generator[Batch, None, None]) -> Batch | None:
    return next(batches, None)


async def open_sink(options: ImportOptions, settings: FrontDoorSettings) -> Sink:
    """The target.

    `--url`, else the stack on `--data` (or ./data), else the store of the environment, else the API.
    """
    if options.url is not None:
        return await ApiSink.open(options.url)
    data = options.data or DEFAULT_DATA
    stack = running_stack(data)
    if stack is not None:
        return await StoreSink.open({**settings.inherited, **stack}, f"the stack on {data.resolve()}")
    if options.data is not None:
        raise CannotStartError(
            f"no stack runs on {data}: start one with `foldin up --data {data}`, or give --url"
        )
    if settings.redis_url is not None:
        return await StoreSink.open(settings.inherited, "the store in FOLDIN_REDIS_URL")
    return await ApiSink.open(DEFAULT_API)


def running_stack(data: Path) -> dict[str, str] | None:
    """The store settings of the stack that runs on a data directory, None if none does."""
    try:
        content = json.loads((data / "stack.json").read_text("utf-8"))
        os.kill(int(content["pid"]), 0)
        return {str(name): str(value) for name, value in content["store"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
