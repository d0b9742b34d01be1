"""Back up: the live history, as of one moment, into a folder of its own, while everything runs.

Invariant: a folder with a manifest has every rating that was acknowledged before the backup began. The
manifest is written last; a backup that was cut off leaves the one before as it was, or is made again.
"""

import asyncio
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from featurestore.catalogue.dump import Dump, dump_to_bytes, read_dump
from featurestore.settings import format_scale
from featurestore.store import Store
from foldin.recovery.adoption import require_match
from foldin.recovery.erased import read_ledgers
from foldin.recovery.errors import RecoveryRefusedError, RecoveryStoppedError
from foldin.recovery.manifest import (
    CATALOGUE_END,
    ITEMS_END,
    File,
    Manifest,
    catalogue_name,
    file_of,
    items_name,
    ledger_name,
    read_manifest,
)
from foldin.recovery.reaching import reach
from foldin.recovery.retries import Say, Step, no_step, retried
from trainer.archive.erasures import FILES, Ledger, put_ledger
from trainer.archive.events import format_position
from trainer.archive.item_list import write_items
from trainer.archive.segments import TEMPORARY, Segment, SegmentName, read_segment, sync_directory
from trainer.errors import ArchiveFailedError, SegmentDamagedError, SegmentGoneError
from trainer.settings import TrainerSettings

# Merges take files away while others are copied; each listing finds most of them in place.
_LISTINGS = 20


async def back_up(
    store: Store, settings: TrainerSettings, target: Path, say: Say, *, step: Step = no_step
) -> Manifest:
    """Back the live history up into `target`; what an earlier backup there has is not copied again.

    Raises `RecoveryRefusedError` (nothing was changed), `RecoveryStoppedError`.
    """
    await require_match(store, settings)
    epoch = (await retried(store.generations.live)).epoch
    name = f"epoch-{epoch:06d}"
    folder = target / name
    try:
        await asyncio.to_thread(_require_own, target, store, settings)
    except OSError as exc:
        raise RecoveryRefusedError(f"{target} cannot be read: {exc.strerror or exc}") from exc
    for _ in range(_LISTINGS):
        reached = await reach(store, epoch, settings.archive_folder / name, say)
        step("reached")
        try:
            files = await asyncio.to_thread(_copy, reached.segments, folder, step)
            break
        except SegmentGoneError:
            continue
        except SegmentDamagedError as exc:
            raise RecoveryStoppedError(
                f"{settings.archive_folder / name / str(exc)}: the trainer rebuilds it from the store within "
                "a minute; run this again then"
            ) from exc
        except OSError as exc:
            raise RecoveryStoppedError(f"cannot write {folder}: {exc.strerror or exc}") from exc
    else:
        raise RecoveryStoppedError("the archive changes all the time: run this again")
    # After the segments: it has every item that they name.
    registry = store.items(epoch)
    await retried(registry.refresh)
    ids = list(registry.ids)
    held = store.catalogue, store.attributes, store.scenarios, store.event_types, store.contexts
    dump = await retried(read_dump, *held)
    manifest = Manifest(
        identity=store.identity,
        namespace=settings.store.namespace,
        partitions=store.config.partitions,
        scale=format_scale(store.config.scale),
        epoch=epoch,
        cut={str(p): format_position(progress.last) for p, progress in reached.cut.items()},
        files=files,
        events=sum(segment.rows for segment in reached.segments),
        items=len(ids),
        created=time.time(),
    )
    try:
        ledgers = await asyncio.to_thread(read_ledgers, settings.archive_folder, skip_damaged=True)
        await asyncio.to_thread(_finish, folder, manifest, _Lists(ids, ledgers, dump), step)
    except (OSError, ArchiveFailedError) as exc:
        raise RecoveryStoppedError(f"cannot write {folder}: {exc}") from exc
    say(f"{folder}: {manifest.events:,} events, {manifest.items:,} items, {len(files)} segments")
    return manifest


def _require_own(target: Path, store: Store, settings: TrainerSettings) -> None:
    """Raise `RecoveryRefusedError` where the folder is none, is the archive's, or has the backup of another
    store; OSError where it cannot be looked at.
    """
    if target.exists() and not target.is_dir():
        raise RecoveryRefusedError(f"{target} is not a folder: name another one")
    # The trainer would take the copies for its own, or move them to its trash; with the store's disk both go.
    for what, folder in (("archive", settings.archive_dir), ("store", settings.store_dir)):
        own_folder, there = folder and folder.resolve(), target.resolve()
        if own_folder and (there.is_relative_to(own_folder) or own_folder.is_relative_to(there)):
            raise RecoveryRefusedError(f"{target} is where the {what} is: name another folder")
    own = store.identity, settings.store.namespace
    for folder in sorted(target.glob("epoch-*")):
        manifest = read_manifest(folder)
        if manifest is not None and (manifest.identity, manifest.namespace) != own:
            raise RecoveryRefusedError(f"{folder} is the backup of another store: name another folder")


def _copy(segments: Sequence[Segment], folder: Path, step: Step) -> dict[str, File]:
    """Copy the segments that the folder does not have; return all by name. Raises OSError, and what reading
    a segment raises.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for segment in segments:
        name = segment.path.name
        try:
            files[name] = file_of(segment.path)
            if not _has(folder / name, files[name]):
                _copy_one(segment.path, folder / name, step)
        except FileNotFoundError as exc:
            raise SegmentGoneError(name) from exc
    sync_directory(folder)
    sync_directory(folder.parent)
    return files


def _has(path: Path, file: File) -> bool:
    return path.exists() and file_of(path) == file


def _copy_one(path: Path, copy: Path, step: Step) -> None:
    # A copy, not a link: a block that goes bad must not be in both.
    beside = copy.with_name(copy.name + TEMPORARY)
    shutil.copyfile(path, beside)
    try:
        # What was damaged in the archive, or on the way, is found now, not when it is needed.
        read_segment(beside)
    except SegmentDamagedError as exc:
        raise SegmentDamagedError(path, exc.why) from exc
    with beside.open("rb+") as written:
        os.fsync(written.fileno())
    step("copied")
    beside.rename(copy)


@dataclass(frozen=True, slots=True)
class _Lists:
    """What a backup has besides segments: item ids by row, erasures, the catalogue."""

    ids: Sequence[bytes]
    ledgers: Sequence[Ledger]
    dump: Dump


def _finish(folder: Path, manifest: Manifest, lists: _Lists, step: Step) -> None:
    """Write the lists and the manifest, then remove what that makes superfluous."""
    beside = folder / f"items{TEMPORARY}"
    beside.mkdir(exist_ok=True)
    written = write_items(beside, lists.ids)
    found = file_of(written)
    # A name of its own: until the new manifest is there the backup before must have its list.
    name = items_name(found)
    written.rename(folder / name)
    beside.rmdir()
    files = manifest.files | {name: found}
    for ledger in lists.ledgers:
        put_ledger(folder / f"ledger{TEMPORARY}", ledger.content)
        found = file_of(folder / f"ledger{TEMPORARY}")
        files[ledger_name(found)] = found
        (folder / f"ledger{TEMPORARY}").rename(folder / ledger_name(found))
    if lists.dump:
        beside = folder / f"catalogue{TEMPORARY}"
        with beside.open("wb") as file:
            file.write(dump_to_bytes(lists.dump))
            file.flush()
            os.fsync(file.fileno())
        found = file_of(beside)
        files[catalogue_name(found)] = found
        beside.rename(folder / catalogue_name(found))
    sync_directory(folder)
    step("listed")
    replace(manifest, files=files).write(folder)
    step("manifest")
    # Merged or rewritten since the backup before: all that they have is in other files of this one.
    for path in folder.iterdir():
        old = path.name.endswith((TEMPORARY, ITEMS_END, CATALOGUE_END)) or path.match(FILES)
        old = old or SegmentName.parse(path.name) is not None
        if old and path.is_file() and path.name not in files:
            path.unlink()
    sync_directory(folder)
