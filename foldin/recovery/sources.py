"""Where ratings are restored from: an archive, a backup, an entry of the trash. Invariant: nothing there is
changed, and what is damaged or newer than this version is refused, naming the file.
"""

import contextlib
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.catalogue.dump import Dump, DumpUnreadable, dump_from_bytes
from featurestore.errors import StoreRefused
from featurestore.ratings.context_schema import ContextRefused, ContextSchema
from featurestore.ratings.event_types import DEFAULT_TYPES, EventType, with_types
from featurestore.settings import format_scale, parse_scale
from featurestore.store import Store
from foldin.files.rows import scale_for
from foldin.recovery.erased import read_ledgers
from foldin.recovery.events import NUMBERS, RatingEvents, of_parts
from foldin.recovery.manifest import NAME as MANIFEST
from foldin.recovery.manifest import Manifest, read_manifest
from processes.errors import CannotStartError
from trainer.archive.erasures import Ledger
from trainer.archive.identity import IDENTITY_FILE, read_identity
from trainer.archive.item_list import NAME as ITEMS
from trainer.archive.item_list import read_items
from trainer.archive.json_files import read_json
from trainer.archive.kept import NAME as KEPT
from trainer.archive.kept import read_kept
from trainer.archive.listing import segment_files, uncovered
from trainer.archive.meanings import read_fields, read_types
from trainer.archive.reading import Part, read_part
from trainer.archive.segments import DAMAGED, open_segment, read_columns
from trainer.archive.trash import NOTE
from trainer.errors import (
    ArchiveFailedError,
    SegmentDamagedError,
    SegmentGoneError,
)

# The trainer merges segments while they are read: the next listing has what came of them.
_LISTINGS = 10


@dataclass(frozen=True, slots=True)
class Source:
    """The folder of one epoch. `manifest`: of a backup."""

    folder: Path
    manifest: Manifest | None = None


@dataclass(frozen=True, slots=True)
class Archived:
    """What a source has: all its events, its items in the order of their rows, who was erased from it, and
    what its store kept besides ratings. `identity`: of that store, None where it does not say; `lacks`: of
    what another store gets nothing back, as a line.
    """

    events: RatingEvents
    items: pa.StringArray
    ledgers: tuple[Ledger, ...] = ()
    catalogue: Dump | None = None
    identity: str | None = None
    lacks: str = ""


def find_source(path: Path, live: tuple[str, int], namespace: str, *, skip_damaged: bool = False) -> Source:
    """Return the epoch that a folder stands for. `live`: identity and live epoch of the store;
    `skip_damaged`: what is there of a backup that is not whole will do.

    Raises `CannotStartError` where there is none, or more than one that could be meant.
    """
    try:
        there = path.is_dir()
    except OSError as exc:
        raise CannotStartError(f"{path} cannot be read: {exc.strerror or exc}") from exc
    if not there:
        raise CannotStartError(f"there is no folder {path}")
    if (manifest := read_manifest(path, skip_damaged=skip_damaged)) is not None:
        return Source(path, manifest)
    if (path / NOTE).exists() or uncovered(path):
        return _without_manifest(path, skip_damaged=skip_damaged)
    # The root of an archive or of backups: an epoch's folder each.
    folders = sorted(folder for folder in path.glob("epoch-*") if folder.is_dir())
    backups = [
        (found, folder)
        for folder in folders
        if (found := read_manifest(folder, skip_damaged=skip_damaged)) is not None
    ]
    if backups:
        newest, folder = max(backups, key=lambda each: each[0].created)
        return Source(folder, newest)
    with_events = [folder for folder in folders if uncovered(folder)]
    # Which one is live is written in the store alone: another store cannot tell.
    if len(with_events) > 1 and read_identity(path) == live[0]:
        with_events = [folder for folder in with_events if folder.name == f"epoch-{live[1]:06d}"]
    if len(with_events) == 1:
        return _without_manifest(with_events[0], skip_damaged=skip_damaged)
    if len(with_events) > 1:
        names = ", ".join(str(folder) for folder in with_events)
        raise CannotStartError(f"{path} has several histories: name the one to restore ({names})")
    # What `FOLDIN_ARCHIVE_DIR` names: it may have archives of several namespaces.
    if (path / namespace).is_dir():
        return find_source(path / namespace, live, namespace, skip_damaged=skip_damaged)
    raise CannotStartError(f"{path} has no ratings: name an archive, a backup, or an entry of the trash")


def _without_manifest(folder: Path, *, skip_damaged: bool) -> Source:
    """Return an epoch of an archive. Refuse a backup that lacks its manifest: nothing tells what it lacks
    besides.
    """
    # A trainer makes the folder of its fits when it opens an epoch; on the way to the trash it goes.
    of_archive = (folder / "fits").is_dir() or (folder / NOTE).exists() or (folder / ITEMS).exists()
    # Beside its epochs an archive says whose it is.
    of_archive = of_archive or (folder.parent / IDENTITY_FILE).exists()
    if not of_archive and not skip_damaged:
        raise CannotStartError(
            f"{folder} has no {MANIFEST}: the backup was cut off, or is not whole; --skip-damaged restores "
            "what is there"
        )
    return Source(folder)


def is_live_archive(source: Source, live: tuple[str, int], root: Path) -> bool:
    """Say whether a source is what the trainer of this store archives into. `root`: its archive."""
    folder = root / f"epoch-{live[1]:06d}"
    return read_identity(root) == live[0] and source.folder.resolve() == folder.resolve()


def _identity_of(source: Source) -> str | None:
    """Return which store a source is from; None where it does not say."""
    if source.manifest is not None:
        return source.manifest.identity
    note = source.folder / NOTE
    if note.exists():
        return str((read_json(note) or {}).get("identity", "")) or None
    return read_identity(source.folder.absolute().parent)


def read_source(source: Source, *, skip_damaged: bool = False, skip_damaged_ledger: bool = False) -> Archived:
    """Read all of a source, each file verified. `skip_damaged`: leave out what cannot be read.

    Raises `CannotStartError`.
    """
    # First: the name of a file that is missing is in no other place.
    if source.manifest is not None and not skip_damaged:
        source.manifest.check(source.folder)
    for _ in range(_LISTINGS):
        with contextlib.suppress(SegmentGoneError):
            events = of_parts(_parts(source, skip_damaged=skip_damaged))
            items = source.folder / (source.manifest.items_file if source.manifest else ITEMS)
            listed = _items(items, events, skip_damaged=skip_damaged)
            # After the events: it has the erasures of all that is missing there.
            ledgers = _ledgers(source, skip_damaged=skip_damaged or skip_damaged_ledger)
            catalogue, lacks = _catalogue(source, skip_damaged=skip_damaged)
            events = _named(events, catalogue, source, skip_damaged=skip_damaged)
            events = _told(events, catalogue, source, skip_damaged=skip_damaged)
            return Archived(events, listed, ledgers, catalogue, _identity_of(source), lacks)
    raise CannotStartError(f"{source.folder} changes all the time: run this again")


async def require_scale(archived: Archived, source: Source, store: Store, *, decide: bool) -> None:
    """Where wanted, decide on the scale of these ratings in a store that has none.

    Raises `CannotStartError` where the store does not take such ratings, `StoreUnavailable`.
    """
    rating = archived.events.rating
    valid = rating[~np.isnan(rating) & (archived.events.type_code == 0)]
    if len(valid) and decide and not store.scale.decided:
        # An archive that is no backup does not say; its ratings are all that is known of it.
        known = source.manifest.scale if source.manifest else format_scale(scale_for(valid))
        try:
            await store.scale.decide(parse_scale(known))
        except ValueError as exc:
            raise CannotStartError(f"the scale of {source.folder} {exc}") from None
    scale = store.scale.value
    off = len(valid) and (valid.min() < scale.low or valid.max() > scale.high)
    if off and store.scale.decided:
        told = source.manifest.scale if source.manifest else f"{valid.min():g}:{valid.max():g}"
        raise CannotStartError(
            f"the ratings of {source.folder} are of the scale {told}, the store's is {format_scale(scale)}: "
            f"use a namespace with FOLDIN_SCALE={told}"
        )


def _parts(source: Source, *, skip_damaged: bool) -> list[Part]:
    folder, manifest = source.folder, source.manifest
    listed = uncovered(folder)
    if manifest is not None:
        # A backup after this one that was cut off may have left files of its own.
        listed = [each for each in segment_files(folder) if each[1].name in manifest.files]
    elif not skip_damaged:
        _require_whole(folder)
    parts = []
    try:
        # Opened at once: a merge takes files away meanwhile.
        files = [(path, open_segment(path)) for _, path in listed]
        for path, file in files:
            try:
                parts.append(read_part(read_columns(path, file), NUMBERS))
            except SegmentDamagedError as exc:
                if not skip_damaged:
                    raise CannotStartError(
                        f"{path} is damaged ({exc.why}): restore from a backup, or leave it out with "
                        "--skip-damaged"
                    ) from exc
    except ArchiveFailedError as exc:
        # Not damage that may be skipped: it may be read the next time.
        raise CannotStartError(
            f"{exc}: run this again, or take the file away and go on with --skip-damaged"
        ) from exc
    return parts


def _ledgers(source: Source, *, skip_damaged: bool) -> tuple[Ledger, ...]:
    # A backup has them with the epoch, an archive beside it; an entry of the trash is a folder deeper.
    folder = source.folder.absolute()
    places = [folder, folder.parent, *([folder.parent.parent] if (folder / NOTE).exists() else [])]
    return tuple(ledger for place in places for ledger in read_ledgers(place, skip_damaged=skip_damaged))


def _catalogue(source: Source, *, skip_damaged: bool) -> tuple[Dump | None, str]:
    """Return what was kept besides ratings, and as a line what of it the source does not have."""
    name = source.manifest.catalogue_file if source.manifest else None
    if name is None:
        return _of_archive(source.folder, skip_damaged=skip_damaged)
    try:
        return dump_from_bytes((source.folder / name).read_bytes()), ""
    except (OSError, DumpUnreadable) as exc:
        if skip_damaged:
            return None, ""
        why = f"{source.folder / name} is damaged ({exc}): leave it out with --skip-damaged"
        raise CannotStartError(why) from exc


def _of_archive(folder: Path, *, skip_damaged: bool) -> tuple[Dump | None, str]:
    """The same of an archive, and of an entry of the trash, which has the file itself where it was another
    store's.
    """
    try:
        kept = read_kept(folder)
        if kept is None and not (folder / NOTE).exists():
            kept = read_kept(folder.absolute().parent)
        # Of the epoch: what its events were written by.
        types, fields = read_types(folder), read_fields(folder)
    except ArchiveFailedError as exc:
        if skip_damaged:
            return None, f"{exc}: it is left out"
        raise CannotStartError(f"{exc}: leave it out with --skip-damaged") from exc
    if kept is None:
        lacks = f"There is no {KEPT}: of titles, attributes, what is hidden, scenarios, experiments and keys "
        found = Dump({}, [], [], [], event_types=types, contexts=list(fields.fields))
        return found if types or fields.fields else None, f"{lacks}nothing comes back."
    # What was told since the last event of the epoch is in the file alone.
    with contextlib.suppress(ContextRefused):
        fields = fields.continued(ContextSchema(tuple(kept.contexts)))
    found = msgspec.structs.replace(
        kept, event_types=_all_types(types, kept.event_types), contexts=list(fields.fields)
    )
    return found, "Attributes of users are in backups alone: an archive brings none of them back."


def _all_types(archived: list[EventType], kept: list[EventType]) -> list[EventType]:
    try:
        return list(with_types(archived, kept))
    except StoreRefused:
        return archived


def _named(
    events: RatingEvents, catalogue: Dump | None, source: Source, *, skip_damaged: bool
) -> RatingEvents:
    """Return the events whose type is named: another store may give the code of any other another meaning."""
    types = DEFAULT_TYPES if catalogue is None else (*DEFAULT_TYPES, *catalogue.event_types)
    known = np.isin(events.type_code, [0, *(each.code for each in types)])
    if known.all():
        return events
    if not skip_damaged:
        codes = ", ".join(map(str, np.unique(events.type_code[~known]).tolist()))
        raise CannotStartError(
            f"{source.folder} does not say what its events of the types {codes} are: leave them out with "
            "--skip-damaged"
        )
    return events.take(known)


def _told(
    events: RatingEvents, catalogue: Dump | None, source: Source, *, skip_damaged: bool
) -> RatingEvents:
    """Return the events with those of their contexts whose fields are named."""
    named = 0 if catalogue is None else len(catalogue.contexts)
    if events.context is None or events.context.shape[1] <= named:
        return events
    if not skip_damaged:
        raise CannotStartError(
            f"{source.folder} does not say what the contexts of its ratings are: leave them out with "
            "--skip-damaged"
        )
    return replace(events, context=events.context[:, :named] if named else None)


def _require_whole(folder: Path) -> None:
    """Refuse a folder of which a part was set aside or is missing."""
    damaged = sorted(folder.glob(f"*{DAMAGED}"))
    if damaged:
        raise CannotStartError(
            f"{damaged[0]} was damaged and set aside: restore from a backup, or leave it out with "
            "--skip-damaged"
        )
    # Numbers begin at 1 and have no holes, whatever was merged or rewritten.
    expected = 1
    for name, path in uncovered(folder):
        if name.first != expected:
            raise CannotStartError(
                f"{folder} lacks what came before {path.name}: restore from a backup, or from what is there "
                "with --skip-damaged"
            )
        expected = name.last + 1


def _items(path: Path, events: RatingEvents, *, skip_damaged: bool) -> pa.StringArray:
    """The listed items by row, then those that events name besides, in the order of the events."""
    try:
        listed = read_items(path)
    except ArchiveFailedError as exc:
        if not skip_damaged:
            raise CannotStartError(f"{exc}: leave it out with --skip-damaged") from exc
        listed = pa.array([], type=pa.string())
    ids = pa.chunked_array([listed, events.item_ids]).unique()
    # The empty id is that of an unknown item.
    return ids.filter(pc.not_equal(ids, ""))
