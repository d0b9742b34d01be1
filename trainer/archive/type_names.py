"""The types of events beside the segments that have such. Invariant: a code that an archived event has is
named on the disk before the event is, so that an archive alone tells what its events mean.

The types that a store begins with are never written: their codes mean the same everywhere.
"""

from collections.abc import Sequence
from pathlib import Path

import msgspec

from featurestore.ratings.event_types import EventType
from trainer.archive.json_files import read_json, write_json

NAME = "event_types.json"


def write_types(directory: Path, types: Sequence[EventType]) -> None:
    """Put the types of an epoch in place. Raises OSError."""
    write_json(directory / NAME, {"types": msgspec.to_builtins(list(types))})


def read_types(directory: Path) -> list[EventType]:
    """Return the types of an epoch, none where they cannot be read: events have their codes all the same.

    Raises `ArchiveRefusedError` for a newer format.
    """
    content = read_json(directory / NAME) or {}
    try:
        return msgspec.convert(content.get("types", []), list[EventType])
    except msgspec.ValidationError:
        return []
