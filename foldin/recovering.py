"""`foldin backup`, `restore`, `undo`, `verify`: on which store and archive they work, and what they show."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from featurestore.errors import StoreError, StoreRefused
from featurestore.store import Store
from foldin.address import stack_on
from foldin.errors import StoppedError
from foldin.progress import Shown
from foldin.recovery.backing_up import back_up
from foldin.recovery.restoring import Restore, RestoreRequest
from foldin.recovery.verifying import verify
from foldin.settings import (
    BackupOptions,
    FrontDoorSettings,
    RestoreOptions,
    UndoOptions,
    VerifyOptions,
)
from foldin.sinks import STORE_TIMEOUT_S
from processes.errors import CannotStartError
from trainer.archive.trash import Trash, TrashEntry
from trainer.errors import ArchiveFailedError, ArchiveRefusedError
from trainer.settings import TrainerSettings

T = TypeVar("T")

# Why an entry of the trash that was live is there; the others were never, or are parts.
_WAS_LIVE = {"replaced", "adopted"}


def find_place(data: Path | None, settings: FrontDoorSettings) -> TrainerSettings:
    """Return which store and archive to work on: of the stack on `data` (or the usual one), else those of the
    environment. Raises CannotStartError.
    """
    folder, stack = stack_on(data, settings)
    if stack is not None:
        # As `foldin up` tells its trainer.
        environ = {
            **settings.inherited,
            **stack,
            "FOLDIN_ARCHIVE_DIR": str(folder / "archive"),
            "FOLDIN_STORE_DIR": str(folder / "store"),
        }
    elif settings.redis_url is None:
        raise CannotStartError(
            f"no stack runs on {folder}: give --data, or FOLDIN_REDIS_URL and FOLDIN_ARCHIVE_DIR"
        )
    else:
        environ = dict(settings.inherited)
    found = TrainerSettings.load((), environ)
    # A late answer does no harm here, and a store that is busy with large calls answers late.
    return replace(found, store=replace(found.store, timeout_s=max(found.store.timeout_s, STORE_TIMEOUT_S)))


def run_backup(options: BackupOptions, settings: FrontDoorSettings) -> int:
    """Back up; return the exit code."""
    place = find_place(options.data, settings)
    with Shown("Backing up") as shown:
        made = _in_store(
            place, lambda store: back_up(store, place, options.path, shown.say, progress=shown.done)
        )
    settings.emit(
        {
            "folder": options.path / f"epoch-{made.epoch:06d}",
            "identity": made.identity,
            "epoch": made.epoch,
            "events": made.events,
            "items": made.items,
            "files": len(made.files),
            "bytes": sum(file.size for file in made.files.values()),
            "created": made.created,
        }
    )
    return 0


def run_restore(options: RestoreOptions, settings: FrontDoorSettings) -> int:
    """Restore; return the exit code."""
    place = find_place(options.data, settings)
    request = RestoreRequest(
        options.path or place.archive_folder,
        "all" if options.to is None else "none",
        None if options.to is None else round(1000 * options.to),
        options.skip_damaged,
        options.dry_run,
        options.skip_damaged_ledger,
        options.erasures,
    )
    return _restore(place, request, settings)


def _restore(place: TrainerSettings, request: RestoreRequest, settings: FrontDoorSettings) -> int:
    with Shown("Restoring") as shown:
        generation = _in_store(
            place, lambda store: Restore(store, place, request, shown.say, progress=shown.done).run()
        )
    settings.emit({"source": request.path, "dry_run": request.dry_run, "generation": generation})
    return 0


def run_undo(options: UndoOptions, settings: FrontDoorSettings) -> int:
    """List the trash, or bring one of its entries back; return the exit code."""
    place = find_place(options.data, settings)
    # Read only: the trainer has the archive, and goes on.
    with _archives():
        entries = Trash(place.archive_folder / "trash", guard=lambda: None).entries()
    if options.name is None:
        for line in listed(entries):
            say(line)
        settings.emit(
            {
                "entries": [
                    {
                        "name": entry.path.name,
                        "at": entry.at,
                        "why": entry.why,
                        "ratings": entry.ratings,
                        "users": entry.users,
                    }
                    for entry in entries
                ]
            }
        )
        return 0
    wanted = [
        entry
        for entry in entries
        if entry.path.name == options.name or (options.name == "last" and entry.why in _WAS_LIVE)
    ]
    if not wanted:
        raise CannotStartError(f"the trash has no entry {options.name}: `foldin undo` lists what there is")
    request = RestoreRequest(
        wanted[-1].path,
        "timed",
        dry_run=options.dry_run,
        skip_damaged_ledger=options.skip_damaged_ledger,
    )
    return _restore(place, request, settings)


def run_verify(options: VerifyOptions, settings: FrontDoorSettings) -> int:
    """Compare store and archive; return the exit code, 1 where they differ."""
    place = find_place(options.data, settings)
    with Shown("Comparing") as shown:
        found = _in_store(place, lambda store: verify(store, place, shown.say, progress=shown.done))
    settings.emit({"same": not found.count, **asdict(found)})
    say(
        f"{found.users:,} users with {found.ratings:,} ratings compared; {found.moved:,} users rated or left "
        "meanwhile"
    )
    for line in found.differences:
        say(f"  {line}")
    if found.count > len(found.differences):
        say(f"  ... {found.count:,} differences in all")
    say("Archive and store differ." if found.count else "Archive and store have the same.")
    return 1 if found.count else 0


def listed(entries: list[TrashEntry]) -> list[str]:
    """Return the trash as lines, the newest entry last."""
    if not entries:
        return ["The trash is empty."]
    return [
        f"{entry.path.name}  {datetime.fromtimestamp(entry.at, UTC):%Y-%m-%d %H:%M:%S} UTC  {entry.why:<9}  "
        f"{entry.ratings:,} ratings of {entry.users:,} users"
        for entry in entries
    ]


def say(text: str) -> None:
    """Show a line at once."""
    print(text, flush=True)


def _in_store(place: TrainerSettings, work: Callable[[Store], Awaitable[T]]) -> T:
    async def run() -> T:
        try:
            store = await Store.open(place.store, hot=False)
        except StoreRefused as exc:
            raise CannotStartError(" ".join(str(exc).split())) from exc
        except StoreError as exc:
            raise CannotStartError(f"the store does not answer ({exc}): start it, or name it") from exc
        try:
            return await work(store)
        except StoreError as exc:
            raise StoppedError(f"the store refuses: {exc}") from exc
        finally:
            await store.close()

    with _archives():
        return asyncio.run(run())


@contextmanager
def _archives() -> Iterator[None]:
    """End a command with a line where an archive is in its way. Raises
    `CannotStartError` for one of a newer version, or another's, `StoppedError`.
    """
    try:
        yield
    except ArchiveRefusedError as exc:
        raise CannotStartError(exc.why) from exc
    except ArchiveFailedError as exc:
        raise StoppedError(f"{exc}; then run this again") from exc
