"""Whether an archive is that of a store: decided from what both say of themselves. Invariant: nothing is
changed here, and where the two disagree the answer names the first thing in which they do.

A rating leaves its stream when it is archived, so an archive that goes on where the store ends tells that the
store was emptied, is another one, was put back from an older copy, or has lost the
writes of its last second (`appendfsync everysec`).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from featurestore.ratings.stream import Progress
from trainer.archive.events import START, Position, format_position
from trainer.archive.json_files import read_json, write_json

IDENTITY_FILE = "identity.json"
# Shown of an identity: enough to tell two apart.
SHOWN = 8
_IDENTITY = re.compile(r"[0-9a-f]{32}")
# In place of an identity that cannot be read: no store has it.
UNREADABLE = "unreadable"

Ends = Mapping[int, Mapping[int, Position]]
"""By epoch and partition: where the last archived event is."""


@dataclass(frozen=True, slots=True)
class ArchiveState:
    """What an archive says of itself. `identity`: None where it has none (new, or lost).
    `ends`: an entry for each epoch that has a folder.
    """

    identity: str | None
    ends: Ends


@dataclass(frozen=True, slots=True)
class StreamState:
    """A partition's stream: how far it is, and where its first entry at or after the archive's last event
    ends (None: there is none, or it was not asked for).
    """

    progress: Progress
    found: Position | None = None


@dataclass(frozen=True, slots=True)
class StoreState:
    """What a store says of itself. `streams`: by epoch and partition, of the epochs that take ratings.
    `partitions`: how many it has; 0 where that is not known.
    """

    identity: str
    last_epoch: int
    streams: Mapping[int, Mapping[int, StreamState]]
    partitions: int = 0


def compare(archive: ArchiveState, store: StoreState) -> str | None:
    """Return in what an archive is not that of the store; None where it is, be it behind or not."""
    if not any(archive.ends.values()):
        # No rating at all: whichever store it was made for, nothing is lost by taking it for this one.
        return None
    if archive.identity not in {None, store.identity}:
        was, now = str(archive.identity), store.identity[:SHOWN]
        was = was if was == UNREADABLE else was[:SHOWN]
        return (
            f"the archive was made for another store (identity {was} in {IDENTITY_FILE}, this one is {now})"
        )
    newest = max(number for number, ends in archive.ends.items() if ends)
    if newest > store.last_epoch:
        return f"the archive has epoch {newest}, and the store has begun no more than {store.last_epoch}"
    if archive.identity is None and not any(ends and n in store.streams for n, ends in archive.ends.items()):
        return "the archive does not say whose it is, and the store uses none of its epochs"
    for epoch, ends in sorted(archive.ends.items()):
        # Of an epoch that takes no more ratings there is nothing to compare: it is on its way to the trash.
        streams = store.streams.get(epoch)
        for partition, end in sorted(ends.items() if streams is not None else ()):
            if archive.identity is not None and 0 < store.partitions <= partition:
                # From before the store moved to one of fewer partitions, when all of it was archived.
                continue
            stream = (streams or {}).get(partition, StreamState(Progress()))
            why = _differs(end, stream, strict=archive.identity is None)
            if why is not None:
                return f"partition {partition} of epoch {epoch}: {why}"
    return None


def _differs(end: Position, stream: StreamState, *, strict: bool) -> str | None:
    """`strict`: of an archive that does not say whose it is also what the store alone has counts."""
    (ms, seq), progress = end, stream.progress
    last_ms, last_seq = progress.last
    if seq > last_seq:
        return f"the archive goes on to event {seq}, the store ends at {last_seq}"
    # Where the entry was trimmed there is no more to see; of a whole stream the times never fall.
    forked = ms > last_ms or (seq == last_seq and ms != last_ms)
    if seq > progress.done:
        forked = forked or stream.found is None or stream.found[0] != ms
    if forked:
        return (
            f"event {seq} of the archive ({format_position(end)}) is another one in the store, "
            "which has lost events and gone on"
        )
    if strict and seq < progress.done:
        return f"the store has archived {progress.done} events elsewhere, and this archive has {seq}"
    return None


def to_look_up(ends: Mapping[int, Position], progress: Mapping[int, Progress]) -> dict[int, Position]:
    """Return of which partitions the stream must be asked whether it has the archive's last event."""
    return {
        partition: end
        for partition, end in ends.items()
        if end > START and progress.get(partition, Progress()).done < end[1]
    }


def read_identity(root: Path) -> str | None:
    """Return which store an archive folder belongs to; None where it does not say.

    Raises `ArchiveRefusedError` for a file of a newer format.
    """
    content = read_json(root / IDENTITY_FILE)
    if content is None:
        return None
    identity = content.get("identity")
    return identity if isinstance(identity, str) and _IDENTITY.fullmatch(identity) else UNREADABLE


def write_identity(root: Path, identity: str, since_ms: int = 0) -> None:
    """Say which store an archive folder belongs to, and since when by that store's clock where it was
    another one's before. Raises OSError.
    """
    write_json(root / IDENTITY_FILE, {"identity": identity, **({"since_ms": since_ms} if since_ms else {})})


def read_since(root: Path) -> int:
    """Return since when an archive folder belongs to its store, in milliseconds by that store's clock; 0
    where it always did. Raises `ArchiveRefusedError` for a file of a newer format.
    """
    since_ms = (read_json(root / IDENTITY_FILE) or {}).get("since_ms", 0)
    return since_ms if isinstance(since_ms, int) else 0
