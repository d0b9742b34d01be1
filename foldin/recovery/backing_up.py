"""Back up: the live history, as of one moment, into a folder of its own, while everything runs.

Invariant: a folder with a manifest has every rating that was acknowledged before the backup began. The
manifest is written last; a backup that was cut off leaves the one before as it was, or is made again.
"""

import asyncio
import contextlib
import fcntl
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from featurestore.errors import StoreError
from featurestore.settings import format_scale
from featurestore.store import Store
from featurestore.telemetry.points import Backup
from foldin.errors import StoppedError
from foldin.recovery.adoption import require_match
from foldin.recovery.erased import ledger_copies
from foldin.recovery.manifest import (
    CATALOGUE,
    CHUNK_BYTES,
    ITEMS,
    File,
    Manifest,
    file_of,
    read_manifest,
)
from foldin.recovery.reaching import Reached, read_reached
from foldin.recovery.retries import Progress, Say, no_progress, retried
from processes.errors import CannotStartError
from trainer.archive.erasures import FILES
from trainer.archive.events import format_position
from trainer.archive.files import TEMPORARY, Staged, open_file, sync_directory, write_whole
from trainer.archive.item_list import write_items
from trainer.archive.segments import Segment, SegmentName, read_segment
from trainer.errors import ArchiveFailedError, SegmentDamagedError, SegmentGoneError
from trainer.settings import TrainerSettings


async def back_up(
    store: Store,
    settings: TrainerSettings,
    target: Path,
    say: Say,
    progress: Progress = no_progress,
) -> Manifest:
    """Back the live history up into `target`; what an earlier backup there has is not copied again.

    Raises `CannotStartError` (nothing was changed), `StoppedError`.
    """
    await require_match(store, settings)
    try:
        await asyncio.to_thread(_require_own, target, store, settings)
    except OSError as exc:
        raise CannotStartError(f"{target} cannot be read: {exc.strerror or exc}") from exc
    with _alone(target):
        return await _back_up(store, settings, target, say, progress)


async def _back_up(
    store: Store, settings: TrainerSettings, target: Path, say: Say, progress: Progress
) -> Manifest:
    epoch = (await retried(store.generations.live)).epoch
    name = f"epoch-{epoch:06d}"
    folder = target / name
    archive = settings.archive_folder / name

    def copied(reached: Reached) -> tuple[Reached, dict[str, File]]:
        try:
            return reached, _copy(reached.segments, folder, progress)
        except SegmentDamagedError as exc:
            why = "the trainer rebuilds it from the store within a minute; run this again then"
            raise StoppedError(f"{archive / str(exc)}: {why}") from exc
        except ArchiveFailedError as exc:
            raise StoppedError(f"{exc}: run this again") from exc
        except OSError as exc:
            raise StoppedError(f"cannot write {folder}: {exc.strerror or exc}") from exc

    reached, files = await read_reached(store, epoch, archive, say, copied)
    # After the segments: it has every item that they name.
    registry = store.items(epoch)
    await retried(registry.refresh)
    ids = list(registry.ids)
    _, kept = await retried(store.kept.packed)
    manifest = Manifest(
        identity=store.identity,
        namespace=settings.store.namespace,
        partitions=store.keys.partitions,
        scale=format_scale(store.scale.value),
        epoch=epoch,
        cut={str(p): format_position(progress.last) for p, progress in reached.cut.items()},
        files=files,
        events=sum(segment.rows for segment in reached.segments),
        items=len(ids),
        created=time.time(),
    )
    try:
        ledgers, damaged = await asyncio.to_thread(ledger_copies, settings.archive_folder)
        for path in damaged:
            say(f"{path} is damaged, and so is its copy: users who were forgotten may be missing there")
        lists = [*((ledger, FILES) for ledger in ledgers), (kept, CATALOGUE)]
        await asyncio.to_thread(_finish, folder, manifest, ids, lists)
    except (OSError, ArchiveFailedError) as exc:
        raise StoppedError(f"cannot write {folder}: {exc}") from exc
    say(f"{folder}: {manifest.events:,} events, {manifest.items:,} items, {len(files)} segments")
    # It is whole without that, too.
    with contextlib.suppress(StoreError):
        await store.telemetry.note_backup(Backup(time.time(), manifest.events))
    return manifest


def _require_own(target: Path, store: Store, settings: TrainerSettings) -> None:
    """Raise `CannotStartError` where the folder is none, is the archive's, or has the backup of another
    store; OSError where it cannot be looked at.
    """
    if target.exists() and not target.is_dir():
        raise CannotStartError(f"{target} is not a folder: name another one")
    # The trainer would take the copies for its own, or move them to its trash; with the store's disk both go.
    for what, folder in (("archive", settings.archive_dir), ("store", settings.store_dir)):
        own_folder, there = folder and folder.resolve(), target.resolve()
        if own_folder and (there.is_relative_to(own_folder) or own_folder.is_relative_to(there)):
            raise CannotStartError(f"{target} is where the {what} is: name another folder")
    own = store.identity, settings.store.namespace
    for folder in sorted(target.glob("epoch-*")):
        manifest = read_manifest(folder)
        if manifest is not None and (manifest.identity, manifest.namespace) != own:
            raise CannotStartError(f"{folder} is the backup of another store: name another folder")


@contextlib.contextmanager
def _alone(target: Path) -> Iterator[None]:
    """Keep other backups from `target`: each removes the files that its own manifest does not name."""
    is_new = not target.exists()
    try:
        # It has what all users of the API have told.
        target.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(target, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as exc:
        raise CannotStartError(f"{target} cannot be made: {exc.strerror or exc}") from exc
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise CannotStartError(f"another backup into {target} is under way") from None
    except OSError:
        pass  # some file systems of other machines lock no folders
    try:
        yield
    finally:
        if is_new:
            # One that could not begin leaves nothing; where there is something in it, it stays.
            with contextlib.suppress(OSError):
                target.rmdir()
        os.close(descriptor)


def _copy(segments: Sequence[Segment], folder: Path, progress: Progress) -> dict[str, File]:
    """Copy the segments that the folder does not have; return all by name. Raises OSError, and what reading
    a segment raises.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    progress(0, len(segments))
    for done, segment in enumerate(segments, 1):
        name = segment.path.name
        try:
            files[name] = file_of(segment.path)
            copy = folder / name
            if not (copy.exists() and file_of(copy) == files[name]):
                _copy_one(segment.path, copy)
        except FileNotFoundError as exc:
            raise SegmentGoneError(name) from exc
        progress(done, len(segments))
    sync_directory(folder)
    sync_directory(folder.parent)
    return files


def _copy_one(path: Path, copy: Path) -> None:
    # A copy, not a link: a block that goes bad must not be in both.
    beside = Staged(copy)
    with open_file(path) as read, beside.open() as written:
        while part := read.read(CHUNK_BYTES):
            written.write(part)
    # What was damaged in the archive, or on the way, is found now, not when it is needed.
    read_segment(path, beside.read())
    beside.sync()
    beside.put_in_place()


def _finish(
    folder: Path, manifest: Manifest, ids: Sequence[bytes], lists: Sequence[tuple[bytes, str]]
) -> None:
    """Write the item ids, by row, what else `lists` has, by what it is called, and the manifest, then remove
    what that makes superfluous.
    """
    files = dict(manifest.files)

    def put(written: Path, pattern: str) -> None:
        # A name of its own: until the new manifest is there the backup before must have its list.
        found = file_of(written)
        name = pattern.replace("*", found.sha256[:16])
        files[name] = found
        written.rename(folder / name)

    beside = folder / f"items{TEMPORARY}"
    beside.mkdir(exist_ok=True)
    put(write_items(beside, ids), ITEMS)
    beside.rmdir()
    for content, pattern in lists:
        beside = folder / f"list{TEMPORARY}"
        write_whole(beside, content)
        put(beside, pattern)
    sync_directory(folder)
    replace(manifest, files=files).write(folder)
    # Merged or rewritten since the backup before: all that they have is in other files of this one.
    for path in folder.iterdir():
        old = path.name.endswith(TEMPORARY) or any(map(path.match, (ITEMS, CATALOGUE, FILES)))
        old = old or SegmentName.parse(path.name) is not None
        if old and path.is_file() and path.name not in files:
            path.unlink()
    sync_directory(folder)
