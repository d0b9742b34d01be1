"""What archived events mean, beside the segments: the types of events, and the fields of contexts.

Invariant: a code or a field that an archived event has is named on the disk before the event is, so that an
archive alone tells what its events mean; a name that is there stays.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from featurestore.ratings.context_schema import (
    ContextRefused,
    ContextSchema,
    schema_from_bytes,
    schema_to_bytes,
)
from featurestore.ratings.event_types import DEFAULT_TYPES, EventType, types_from_bytes, types_to_bytes
from trainer import log
from trainer.archive.json_files import read_json, write_json
from trainer.errors import ArchiveFailedError, archive_errors

TYPES, FIELDS = "event_types.json", "contexts.json"


class TypeNames:
    """The types of one epoch on the disk. `codes`: those that are named there, 0 of a rating among them.

    The types that a store begins with are not written alone: their codes mean the same everywhere.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._written: tuple[EventType, ...] | None = None
        self.codes = frozenset({0})

    def name(self, types: Sequence[EventType]) -> None:
        """Have the types of the store on the disk. Blocks.

        Raises `ArchiveFailedError`, and `ArchiveRefusedError` for a newer format.
        """
        if self._written is None:
            try:
                self._written = tuple(read_types(self._directory)) or DEFAULT_TYPES
            except ArchiveFailedError:
                # The store has them: the file is written anew.
                self._written = ()
        codes, names = {each.code for each in types}, {each.name for each in types}
        # A store that was put back from an older copy has lost types of archived events.
        lost = [each for each in self._written if each.code not in codes and each.name not in names]
        found = tuple(sorted((*types, *lost), key=lambda each: each.code))
        if found != self._written:
            _write(self._directory / TYPES, {"types": msgspec.to_builtins(list(found))})
            self._written = found
        self.codes = frozenset({0, *(each.code for each in found)})


def read_types(directory: Path) -> list[EventType]:
    """Return the types of an epoch; none where there is no file: the events have those of any store.

    Raises `ArchiveFailedError` where it cannot be read, `ArchiveRefusedError` for a newer format.
    """
    content = read_json(directory / TYPES)
    if content is None:
        return []
    try:
        types = msgspec.convert(content.get("types"), list[EventType])
        return list(types_from_bytes(types_to_bytes(types)))
    except (ValueError, msgspec.ValidationError) as exc:
        raise ArchiveFailedError(f"{directory / TYPES} is damaged ({exc})") from exc


class ContextFields:
    """The fields of one epoch on the disk."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._written: ContextSchema | None = None

    def count(self) -> int:
        """Return how many fields are on the disk. Blocks. Raises as `name`."""
        return len(self._known().fields)

    def name(self, schema: ContextSchema) -> None:
        """Have the fields of the store on the disk. Blocks.

        Raises `ArchiveFailedError`, and `ArchiveRefusedError` for a newer format.
        """
        known = self._known()
        try:
            # A store that was put back from an older copy has lost fields of archived contexts.
            found = known.continued(schema)
        except ContextRefused as exc:
            log.warning("context_fields_differ", why=str(exc))
            return
        if found != known:
            _write(self._directory / FIELDS, {"schema": msgspec.json.decode(schema_to_bytes(found))})
            self._written = found

    def _known(self) -> ContextSchema:
        if self._written is None:
            try:
                self._written = read_fields(self._directory)
            except ArchiveFailedError:
                # The store has them: the file is written anew.
                self._written = ContextSchema()
        return self._written


def read_fields(directory: Path) -> ContextSchema:
    """Return the fields of an epoch; none where there is no file.

    Raises `ArchiveFailedError` where it cannot be read, `ArchiveRefusedError` for a newer format.
    """
    content = read_json(directory / FIELDS)
    if content is None:
        return ContextSchema()
    try:
        return schema_from_bytes(msgspec.json.encode(content.get("schema")))
    except ValueError as exc:
        raise ArchiveFailedError(f"{directory / FIELDS} is damaged ({exc})") from exc


def _write(path: Path, content: dict[str, Any]) -> None:
    with archive_errors(f"write {path}"):
        write_json(path, content)
