"""The types of events beside the segments that have such. Invariant: a code that an archived event has is
named on the disk before the event is, so that an archive alone tells what its events mean; a name that is
there stays.

The types that a store begins with are not written alone: their codes mean the same everywhere.
"""

from collections.abc import Sequence

import msgspec

from featurestore.ratings.event_types import DEFAULT_TYPES, EventType, types_from_bytes, types_to_bytes
from trainer.archive.json_files import read_json, write_json
from trainer.archive.storage.files import Location
from trainer.errors import ArchiveFailedError

NAME = "event_types.json"


class TypeNames:
    """The types of one epoch on the disk. `codes`: those that are named there, 0 of a rating among them."""

    def __init__(self, directory: Location) -> None:
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
            try:
                write_json(self._directory / NAME, {"types": msgspec.to_builtins(list(found))})
            except OSError as exc:
                path = self._directory / NAME
                raise ArchiveFailedError(f"cannot write {path}: {exc.strerror or exc}") from exc
            self._written = found
        self.codes = frozenset({0, *(each.code for each in found)})


def read_types(directory: Location) -> list[EventType]:
    """Return the types of an epoch; none where there is no file: the events have those of any store.

    Raises `ArchiveFailedError` where it cannot be read, `ArchiveRefusedError` for a newer format.
    """
    content = read_json(directory / NAME)
    if content is None:
        return []
    try:
        types = msgspec.convert(content.get("types"), list[EventType])
        return list(types_from_bytes(types_to_bytes(types)))
    except (ValueError, msgspec.ValidationError) as exc:
        raise ArchiveFailedError(f"{directory / NAME} is damaged ({exc})") from exc
