"""`foldin import --items`: a file of items goes to the catalogue of a running Foldin.

Invariant: the whole file is read, and its types are held, before the first item is stored.
"""

import asyncio
import json
import time

import aiohttp
from rich.console import Console

from evaluation.api_client import ApiClient, ApiError
from featurestore.catalogue.schema import Types
from foldin.errors import ImportStoppedError
from foldin.files.items import ItemsFile, read_items_file
from foldin.settings import DEFAULT_API, FrontDoorSettings, ImportOptions
from foldin.sinks import API_TIMEOUT_S, DEFAULT_DATA, running_stack_url
from processes.errors import CannotStartError
from processes.settings import secret_of

# Half a megabyte of JSON where items are as long as most are.
_AT_ONCE = 1_000
# Of the first item: what fits on a terminal.
_SHOWN_CHARACTERS = 200


def run_item_import(options: ImportOptions, settings: FrontDoorSettings) -> int:
    """Import a file of items; return the exit code.

    Raises CannotStartError (nothing was written) and ImportStoppedError (some was).
    """
    asyncio.run(_run(options, settings, Console(highlight=False, soft_wrap=True)))
    return 0


async def _run(options: ImportOptions, settings: FrontDoorSettings, console: Console) -> None:
    if options.dry_run:
        _describe(await _read(options, {}), options, console)
        console.print("Nothing was written: a dry run.")
        return
    url = options.url or running_stack_url(options.data or DEFAULT_DATA)
    if url is None and options.data is not None:
        raise CannotStartError(f"no stack runs on {options.data}: start one, or give --url")
    key = secret_of(options.key, options.key_file)
    async with aiohttp.ClientSession() as session:
        client = ApiClient(session, url or DEFAULT_API, key=key, timeout_s=API_TIMEOUT_S)
        try:
            held = await client.item_types()
        except ApiError as exc:
            raise CannotStartError(f"the API at {client.url} does not tell its schema: {exc.detail}") from exc
        file = await _read(options, held)
        _describe(file, options, console)
        try:
            await client.tell_item_types(
                {name: each for name, each in file.types.items() if name not in held}
            )
        except ApiError as exc:
            raise CannotStartError(f"{client.url} refuses the types of {options.path}: {exc.detail}") from exc
        began, written = time.monotonic(), 0
        while written < len(file.rows):
            try:
                await client.put_items(file.rows[written : written + _AT_ONCE])
            except ApiError as exc:
                row = "" if exc.row is None else f"row {written + exc.row + 1} of {options.path}: "
                # Written again it does no harm.
                raise ImportStoppedError(f"{row}{exc.detail}; {written:,} items are written") from exc
            written = min(written + _AT_ONCE, len(file.rows))
        took_s = max(time.monotonic() - began, 1e-6)
        console.print(
            f"{written:,} items written to {client.url} in {took_s:.1f} s, {written / took_s:,.0f} a second."
        )


async def _read(options: ImportOptions, held: Types) -> ItemsFile:
    skip_bad = options.on_bad == "skip"
    return await asyncio.to_thread(read_items_file, options.path, options.columns, held, skip_bad=skip_bad)


def _describe(file: ItemsFile, options: ImportOptions, console: Console) -> None:
    """Show what was found in a file."""
    console.print(f"{options.path}: {len(file.rows):,} items", markup=False)
    for field, column in file.columns.items():
        console.print(f"  {field}: column {column}", markup=False)
    for name, kind in file.types.items():
        console.print(f"  attributes.{name}: {kind}", markup=False)
    for remark in file.remarks:
        console.print(f"  {remark}", markup=False)
    if file.rows:
        first = json.dumps(file.rows[0], ensure_ascii=False)
        console.print(f"  the first: {first[:_SHOWN_CHARACTERS]}", markup=False)
