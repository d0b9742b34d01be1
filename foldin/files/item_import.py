"""`foldin import --items` and `--users`: what a file says of items or users goes to a running Foldin.

Invariant: the whole file is read, and its types are held, before the first row is stored.
"""

import asyncio
import json
import time
from collections.abc import Callable

import msgspec
from rich.console import Console

from featurestore.catalogue.schema import Kind
from featurestore.catalogue.schema import Types as TypesOfOne
from foldin.address import api_client, find_api
from foldin.errors import StoppedError
from foldin.files.items import SYNONYMS, USER_SYNONYMS, ItemsFile, read_items_file
from foldin.settings import FrontDoorSettings, ImportOptions
from foldin_client import AsyncClient, FoldinError, ProblemError
from foldin_client.rows import MAX_ROWS
from processes.errors import CannotStartError
from processes.settings import api_key_of

# So long a busy API is waited for, as one is that is replaced.
WAIT_S = 300.0
# Of the first row: what fits on a terminal.
_SHOWN_CHARACTERS = 200
_Progress = Callable[[int, int], None]


def run_item_import(
    options: ImportOptions,
    settings: FrontDoorSettings,
    progress: _Progress = lambda _done, _total: None,
) -> int:
    """Import a file of items, or of users; return the exit code. `progress`: is told how many are written.

    Raises CannotStartError (nothing was written) and StoppedError (some was).
    """
    asyncio.run(_run(options, settings, Console(highlight=False, soft_wrap=True), progress))
    return 0


async def _run(
    options: ImportOptions, settings: FrontDoorSettings, console: Console, progress: _Progress
) -> None:
    kind: Kind = "users" if options.users else "items"
    if options.dry_run:
        file = await _read(options, kind, {})
        _describe(file, options, kind, console)
        console.print("Nothing was written: a dry run.")
        settings.emit(_told(file, options, None, (0, 0), 0.0))
        return
    url = find_api(options.url, options.data, settings)
    key = api_key_of(options.key, options.key_file)
    async with api_client(url, key, retry_s=WAIT_S) as client:
        try:
            told = await client.get_schema()
            held = msgspec.convert(told.users if options.users else told.items, TypesOfOne)
        except (FoldinError, msgspec.ValidationError) as exc:
            raise CannotStartError(
                f"the API at {client.url} does not tell its schema: {_reason(exc)}"
            ) from exc
        file = await _read(options, kind, held)
        _describe(file, options, kind, console)
        new = {name: each for name, each in file.types.items() if name not in held}
        try:
            await (client.put_schema(users=new) if options.users else client.put_schema(items=new))
        except FoldinError as exc:
            raise CannotStartError(
                f"{client.url} refuses the types of {options.path}: {_reason(exc)}"
            ) from exc
        began = time.monotonic()
        written, still_deleted = await _write(client, file, options, kind, progress)
        took_s = max(time.monotonic() - began, 1e-6)
        settings.emit(_told(file, options, client.url, (written, still_deleted), took_s))
        console.print(
            f"{written:,} {kind} written to {client.url} in {took_s:.1f} s, {written / took_s:,.0f} a second."
        )
        if still_deleted:
            console.print(f"{still_deleted:,} of them were deleted, and stay so without --undelete.")


async def _write(
    client: AsyncClient, file: ItemsFile, options: ImportOptions, kind: Kind, progress: _Progress
) -> tuple[int, int]:
    """Write all rows, and return how many they are, and how many of them stay deleted. Raises
    StoppedError.
    """
    written = still_deleted = 0
    if options.undelete:
        for each in file.rows:
            each["undelete"] = True
    # As one call takes them: what is shown as written is.
    for start in range(0, len(file.rows), MAX_ROWS):
        rows = file.rows[start : start + MAX_ROWS]
        try:
            if kind == "users":
                accepted = (await client.put_users(rows)).accepted
            else:
                stored = await client.put_items(rows)
                accepted, still_deleted = stored.accepted, still_deleted + stored.still_deleted
        except FoldinError as exc:
            row = ""
            if isinstance(exc, ProblemError) and exc.row is not None:
                row = f"row {start + exc.row + 1} of {options.path}: "
            written += exc.accepted
            # Written again it does no harm.
            raise StoppedError(f"{row}{_reason(exc)}; {written:,} {kind} are written") from exc
        written += accepted
        progress(written, len(file.rows))
    return written, still_deleted


def _told(
    file: ItemsFile, options: ImportOptions, target: str | None, counts: tuple[int, int], took_s: float
) -> dict[str, object]:
    """Return what `--json` prints. `counts`: of rows written, and of those among them that stay deleted."""
    told = {"file": options.path, "target": target, "written": counts[0], "still_deleted": counts[1]}
    return {**told, "left_out": file.left_out, "seconds": round(took_s, 3)}


def _reason(error: Exception) -> str:
    return error.detail if isinstance(error, ProblemError) and error.detail else str(error)


async def _read(options: ImportOptions, kind: Kind, held: TypesOfOne) -> ItemsFile:
    names = USER_SYNONYMS if kind == "users" else SYNONYMS
    skip_bad = options.on_bad == "skip"
    return await asyncio.to_thread(
        read_items_file, options.path, options.columns, held, skip_bad=skip_bad, names=names
    )


def _describe(file: ItemsFile, options: ImportOptions, kind: Kind, console: Console) -> None:
    """Show what was found in a file."""
    console.print(f"{options.path}: {len(file.rows):,} {kind}", markup=False)
    for field, column in file.columns.items():
        console.print(f"  {field}: column {column}", markup=False)
    for name, each in file.types.items():
        console.print(f"  attributes.{name}: {each}", markup=False)
    for remark in file.remarks:
        console.print(f"  {remark}", markup=False)
    if file.rows:
        first = json.dumps(file.rows[0], ensure_ascii=False)
        console.print(f"  the first: {first[:_SHOWN_CHARACTERS]}", markup=False)
