"""`foldin import`: the ratings of a file go to a running Foldin.

Invariant: with `--on-bad refuse` a file with a bad row changes nothing, since the whole file is read before
the first rating is written. A rating that is written twice does no harm, so an import that was stopped goes
on at the last position that was kept, or earlier.
"""

import asyncio
import shlex
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import inf

import numpy as np
from rich.console import Console

from factors import Scale
from featurestore.settings import DEFAULT_SCALE, format_scale, parse_scale
from foldin.commands.running import INTERRUPTED
from foldin.errors import StoppedError
from foldin.files.contexts import FileFields
from foldin.files.layout import find_layout
from foldin.files.pairs import FilePairs
from foldin.files.positions import Position, PositionFile
from foldin.files.reading import RatingsFile
from foldin.files.rows import (
    BadRow,
    Batch,
    RowRules,
    Values,
    beyond,
    distinct,
    off_scale,
    pieces,
    scale_for,
)
from foldin.progress import ImportProgress, Shown
from foldin.recovery.retries import GIVE_UP_FULL_S, GIVE_UP_SILENT_S
from foldin.settings import CONTEXT_PREFIX, FrontDoorSettings, ImportOptions
from foldin.sinks import Row, RowRefusedError, Sink, SinkBusyError, open_sink, same_context
from foldin_client.wire import without_user
from processes.errors import CannotStartError

SHOWN_ROWS = 20  # of the bad rows: what fits on a terminal
SHOWN_KINDS = 8  # on one line, the commonest
SAVE_EVERY_S = 1.0  # what a kill costs at most
MAX_WAIT_S = 5.0  # between two attempts, whatever the target asks for
# Calls side by side: while the store works for one, the next is prepared.
LANES = 2


@dataclass(slots=True)
class Findings:
    """What was found in the file: the number of bad rows, by kind, the first of them, and the ratings'
    values.
    """

    bad: int = 0
    off_scale: int = 0
    first: list[BadRow] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)
    seen: Values = field(default_factory=lambda: np.empty(0))
    good: int = 0

    def add(self, batch: Batch) -> None:
        """Add what a batch had."""
        self.seen = distinct(np.concatenate((self.seen, batch.seen)))
        self.good += len(batch)
        for row in batch.bad:
            self.add_bad(row)

    def add_bad(self, row: BadRow) -> None:
        """Add one bad row."""
        self.bad += 1
        self.off_scale += row.off_scale
        self.kinds[row.reason.partition(":")[0] if not row.off_scale else "rating is off the scale"] += 1
        if len(self.first) < SHOWN_ROWS:
            self.first.append(row)

    def lines(self, unit: str) -> Iterator[str]:
        """Yield the first bad rows, and how many there are of each kind where these are not all."""
        for row in self.first:
            yield f"  {unit} {row.line:,}: {row.reason}"
        if self.bad > len(self.first):
            rest = ", ".join(f"{count:,} x {kind}" for kind, count in self.kinds.most_common(SHOWN_KINDS))
            yield f"  ... in all: {rest}"


def run_any_import(options: ImportOptions, settings: FrontDoorSettings) -> int:
    """Import a file of ratings, items or users; return the exit code. Raises as `run_import`."""
    if options.items or options.users:
        from foldin.files.item_import import run_item_import

        with Shown(f"Importing {'users' if options.users else 'items'}") as shown:
            return run_item_import(options, settings, shown.done)
    return run_import(options, settings)


def run_import(options: ImportOptions, settings: FrontDoorSettings) -> int:
    """Import a file; return the exit code.

    Raises CannotStartError (nothing was written) and StoppedError (some was).
    """
    # A dry run asks for nothing.
    console = Console(highlight=False, soft_wrap=True, force_interactive=False if options.dry_run else None)
    layout = find_layout(options.path, options.format, options.columns)
    console.print(f"{options.path}: {layout.describe()}", markup=False)
    if unread := layout.unread:
        console.print(f"Columns that are not read: {', '.join(unread)}", markup=False)
    importer = Importer(RatingsFile(options.path, layout), options, settings, console)
    try:
        asyncio.run(importer.dry_run() if options.dry_run else importer.run())
    except KeyboardInterrupt:
        console.print(importer.how_to_go_on("stopped"), markup=False)
        settings.emit({"error": "interrupted", "exit_code": INTERRUPTED})
        return INTERRUPTED
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
        # By place, which rows a later one of the same pair replaces.
        self._replaced = np.zeros(0, bool)
        self._written = 0
        self._position: Position | None = None
        # Fields of contexts that the target knows.
        self._named = set[str]()

    async def run(self) -> None:
        """Import the file. Raises CannotStartError and StoppedError."""
        sink = await open_sink(self._options, self._settings)
        try:
            positions = PositionFile(self._settings.state_dir, self._options.path, sink.name)
            start = self._start(positions, sink)
            rules = await self._rules(sink)
            await self._check(rules)
            # All of them, before anything is decided.
            await self._name_fields(sink, rules)
            if sink.scale is None:
                rules = await self._decided(sink, rules)
            began = time.monotonic()
            await self._write(sink, rules, start, positions)
            self._tell_empty(rules)
            self._conclude(sink, max(time.monotonic() - began, 1e-6))
            positions.remove()
        finally:
            await sink.close()

    async def dry_run(self) -> None:
        """Check the file as an import does, against the target where one runs, and tell what would be
        written. Raises CannotStartError.
        """
        began, sink = time.monotonic(), None
        try:
            sink = await open_sink(self._options, self._settings)
        except CannotStartError as exc:
            if self._options.url or self._options.data:
                raise
            self._console.print(f"Checked by itself, as {exc}", markup=False)
        try:
            rules = await self._rules(sink)
        finally:
            if sink is not None:
                await sink.close()
        ids: dict[str, set[bytes]] = {"users": set(), "items": set()}
        await self._check(rules, ids)
        good, bad = self._findings.good - int(self._replaced.sum()), self._findings.bad
        scale = format_scale(rules.scale)
        counts = {name: len(each) for name, each in ids.items()}
        self._report_bad_rows()
        self._tell_empty(rules)
        self._console.print(
            f"{good:,} ratings of {counts['users']:,} users and {counts['items']:,} items on the scale "
            f"{scale} would be written to {sink.name if sink else 'an empty store'}, {bad:,} bad rows left "
            "out. Nothing was written: a dry run.",
            markup=False,
        )
        told = {"file": self._options.path, "target": sink and sink.name, "written": 0, "left_out": bad}
        took_s = round(time.monotonic() - began, 3)
        self._settings.emit({**told, "seconds": took_s, "ratings": good, **counts, "scale": scale})

    async def _rules(self, sink: Sink | None) -> RowRules:
        """Return what rows of the file must be: on the scale of the target, where it has one."""
        # One moment for all ratings without a time, in both passes.
        scale = sink and sink.scale
        scale = scale or await _scale_of_file(self._file, self._options.scale, self._console)
        rules = RowRules(scale, time.time())
        if sink is not None and self._file.layout.may_have_contexts:
            known = await sink.context_schema()
            rules = replace(rules, fields=FileFields(known))
            self._named = {each.name for each in known.named_fields}
        return rules

    async def _decided(self, sink: Sink, rules: RowRules) -> RowRules:
        """Decide on the scale of a store that has none; return the rules of the one that it has now."""
        scale = await sink.decide(rules.scale)
        self._console.print(f"The scale of {sink.name} is {format_scale(scale)} from now on, for good.")
        if scale == rules.scale:
            return rules
        # Another import, or a rating, came first.
        rules = replace(rules, scale=scale)
        await self._check(rules)
        return rules

    def _start(self, positions: PositionFile, sink: Sink) -> Position:
        """Return where the import begins."""
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

    async def _check(self, rules: RowRules, ids: Mapping[str, set[bytes]] | None = None) -> None:
        """Read the whole file, and find the rows that a later one replaces. Raises CannotStartError where it
        has a bad row that is not to be skipped. `ids`: sets to which those of users and items are added.
        """
        self._findings = Findings()
        ratings = 0
        with (
            FilePairs.open() as pairs,
            ImportProgress(self._console, "Checking", self._file.total_bytes) as progress,
        ):
            batches = self._file.read(rules)
            while (batch := await _next(batches)) is not None:
                self._findings.add(batch)
                await asyncio.to_thread(pairs.add, batch)
                ratings += len(batch)
                if ids is not None:
                    ids["users"].update(batch.user_ids.unique().to_pylist())
                    ids["items"].update(batch.item_ids.unique().to_pylist())
                progress.update(self._file.position, ratings)
            self._replaced, repeated = await asyncio.to_thread(pairs.replaced)
        if repeated:
            stand = "pair stands" if repeated == 1 else "pairs stand"
            self._console.print(f"{repeated:,} {stand} more than once: the latest counts.")
        seen = self._findings.seen
        between = seen[off_scale(seen, rules.scale) & ~beyond(seen, rules.scale)]
        if len(between):
            steps = f"the steps of the scale {format_scale(rules.scale)}"
            self._console.print(f"Ratings between {steps}, such as {between[0]:g}, are kept as they are.")
        if not self._findings.bad or self._options.on_bad == "skip":
            return
        self._report_bad_rows()
        advice = "mend them, or leave them out with --on-bad skip"
        if self._findings.off_scale:
            scale = format_scale(rules.scale)
            begin = f"FOLDIN_SCALE={format_scale(scale_for(seen))} and another FOLDIN_NAMESPACE or --data"
            advice = (
                f"its ratings run from {seen[0]:g} to {seen[-1]:g}, the scale is {scale}; a store has one "
                f"for good, so begin a new one with {begin}; or {advice}"
            )
        raise CannotStartError(
            f"{self._findings.bad:,} bad rows in {self._options.path}, so nothing was written: {advice}"
        )

    async def _write(self, sink: Sink, rules: RowRules, start: Position, positions: PositionFile) -> None:
        """Write every rating after `start`, and keep the position now and then."""
        self._position = start
        saved = time.monotonic()
        with ImportProgress(self._console, "Importing", self._file.total_bytes) as progress:
            batches = self._file.read(rules)
            # The next batch is decoded while this one is written.
            coming = asyncio.create_task(_next(batches), name="decode")
            read_bytes = place = 0
            try:
                while (found := await coming) is not None:
                    # Where this batch lies: what is decoded next is read, and not written.
                    part = range(read_bytes, read_bytes := self._file.position)
                    coming = asyncio.create_task(_next(batches), name="decode")
                    replaced = self._replaced[place : (place := place + len(found))]
                    if len(replaced) < len(found):
                        raise self._changed()
                    batch = (found.only(~replaced) if replaced.any() else found).after(start.line)
                    await self._name_fields(sink, rules)
                    await self._write_batch(sink, batch, part, progress)
                    self._position = replace(
                        start,
                        line=max(batch.last_line, start.line),
                        ratings=start.ratings + self._written,
                    )
                    if time.monotonic() - saved > SAVE_EVERY_S:
                        positions.save(self._position)
                        saved = time.monotonic()
            finally:
                if self._written:
                    positions.save(self._position)
                # A generator cannot be closed while the thread is in it.
                await asyncio.gather(coming, return_exceptions=True)
                batches.close()
        stat = self._options.path.stat()
        if (stat.st_size, stat.st_mtime_ns) != (start.size, start.modified_ns):
            raise self._changed()

    def _changed(self) -> StoppedError:
        # As while it is still being copied: what came later may be missing, and was not checked.
        reason = f"{self._options.path} has changed while it was read"
        return StoppedError(f"{reason}: import it as a whole when it changes no more")

    async def _name_fields(self, sink: Sink, rules: RowRules) -> None:
        """Name the fields of the header that the target has not, before any row gives them."""
        fields = [each for each in rules.fields.schema.named_fields if each.name not in self._named]
        if fields:
            try:
                await sink.name_fields(fields)
            except CannotStartError as exc:
                if not self._written:
                    raise
                raise StoppedError(self.how_to_go_on(str(exc))) from exc
            self._named |= {each.name for each in fields}

    async def _write_batch(self, sink: Sink, batch: Batch, part: range, progress: ImportProgress) -> None:
        """Write a batch, which is this part of the bytes of the file, in lanes that go side by side. Raises
        what the first lane that fails raises.
        """
        before = self._written

        def show() -> None:
            share = (self._written - before) / len(batch)
            progress.update(part.start + int(share * len(part)), self._written)

        lanes = (self._write_lane(sink, batch.lane(number, LANES), progress, show) for number in range(LANES))
        # All lanes end before an error is raised: none may write after the position was kept.
        for result in await asyncio.gather(*lanes, return_exceptions=True):
            if result is not None:
                raise result

    async def _write_lane(
        self, sink: Sink, batch: Batch, progress: ImportProgress, show: Callable[[], None]
    ) -> None:
        # All events of a user are in one lane, in the order of the file: the last one for an item wins.
        for rows, lines in pieces(batch, sink.batch_rows):
            await self._write_rows(sink, rows, lines, progress)
            self._written += len(rows)
            show()

    async def _write_rows(
        self, sink: Sink, rows: list[Row], lines: list[int], progress: ImportProgress
    ) -> None:
        """Write the rows of one call, within reason however long the target is busy.

        Rows that the target refuses are taken out of both lists. Raises StoppedError.
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
                    raise StoppedError(self.how_to_go_on(reason)) from exc
                progress.note(f"waiting: {exc}")
                await asyncio.sleep(min(exc.retry_after_s, MAX_WAIT_S))
            except RowRefusedError as exc:
                if not 0 <= exc.position < len(rows):
                    raise StoppedError(f"{sink.name} refuses the ratings: {exc}") from exc
                line = lines[exc.position]
                if self._options.on_bad == "refuse":
                    raise StoppedError(
                        self.how_to_go_on(f"{sink.name} refuses line {line} of {self._options.path}: {exc}")
                    ) from exc
                # One refusal tells of all rows that give the same, which a call each would ask.
                alike = same_context(rows, exc.position, exc.field.removeprefix(CONTEXT_PREFIX))
                for position in reversed(alike):
                    self._findings.add_bad(BadRow(lines[position], str(exc)))
                    del rows[position], lines[position]
            else:
                progress.note("")
                return

    def _conclude(self, sink: Sink, took_s: float) -> None:
        self._settings.emit(
            {
                "file": self._options.path,
                "target": sink.name,
                "written": self._written,
                "left_out": self._findings.bad,
                "seconds": round(took_s, 3),
            }
        )
        self._console.print(
            f"{self._written:,} ratings written to {sink.name} in {took_s:.1f} s, "
            f"{self._written / took_s:,.0f} a second."
        )
        if self._findings.bad:
            self._report_bad_rows()
            self._console.print(f"{self._findings.bad:,} bad rows were left out.")

    def _tell_empty(self, rules: RowRules) -> None:
        read = [role for role in self._file.layout.columns if role.startswith(CONTEXT_PREFIX)]
        if empty := [role for role in read if role.removeprefix(CONTEXT_PREFIX) not in rules.fields.given]:
            self._console.print(f"No row gives anything in {', '.join(empty)}.", markup=False)

    def _report_bad_rows(self) -> None:
        for text in self._findings.lines("row" if self._file.layout.kind == "parquet" else "line"):
            self._console.print(text, markup=False)

    def how_to_go_on(self, reason: str) -> str:
        """Return what happened, how far the import is, and the command that goes on there."""
        if self._position is None:
            return f"{reason}; nothing was written"
        if not self._position.ratings:
            # Lanes beside the one that stopped may have been faster.
            return f"{reason}; some of the first rows may be written: mended, the file is imported as a whole"
        options = self._options
        parts = ["foldin", "import", str(options.path)]
        told = {
            "--url": options.url and without_user(options.url),
            "--data": options.data,
            # A key itself is shown nowhere.
            "--key-file": options.key_file,
            "--config": self._settings.inherited.get("FOLDIN_CONFIG"),
        }
        for flag, value in told.items():
            if value is not None:
                parts += [flag, str(value)]
        if options.format != "auto":
            parts += ["--format", options.format]
        if options.columns:
            parts += ["--columns", ",".join(f"{role}={name}" for role, name in options.columns.items())]
        if options.on_bad != "refuse":
            parts += ["--on-bad", options.on_bad]
        command = shlex.join([*parts, "--resume"])
        return f"{reason}; {self._position.ratings:,} ratings are written, go on with: {command}"


async def _next(batches: Generator[Batch, None, None]) -> Batch | None:
    # A thread: 2 MB of text are decoded and checked at a time.
    return await asyncio.to_thread(next, batches, None)


async def _scale_of_file(file: RatingsFile, told: str | None, console: Console) -> Scale:
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
        while (batch := await _next(batches)) is not None:
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
