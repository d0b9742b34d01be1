"""The fields of contexts beside the segments that have such. Invariant: what an archived context has is named
on the disk before the event is, so that an archive alone tells what its contexts mean.
"""

import msgspec

from featurestore.ratings.context_schema import (
    ContextRefused,
    ContextSchema,
    schema_from_bytes,
    schema_to_bytes,
)
from trainer import log
from trainer.archive.json_files import read_json, write_json
from trainer.archive.storage.files import Location
from trainer.errors import ArchiveFailedError

NAME = "contexts.json"


class ContextFields:
    """The fields of one epoch on the disk."""

    def __init__(self, directory: Location) -> None:
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
            path = self._directory / NAME
            try:
                write_json(path, {"schema": msgspec.json.decode(schema_to_bytes(found))})
            except OSError as exc:
                raise ArchiveFailedError(f"cannot write {path}: {exc.strerror or exc}") from exc
            self._written = found

    def _known(self) -> ContextSchema:
        if self._written is None:
            try:
                self._written = read_fields(self._directory)
            except ArchiveFailedError:
                # The store has them: the file is written anew.
                self._written = ContextSchema()
        return self._written


def read_fields(directory: Location) -> ContextSchema:
    """Return the fields of an epoch; none where there is no file.

    Raises `ArchiveFailedError` where it cannot be read, `ArchiveRefusedError` for a newer format.
    """
    content = read_json(directory / NAME)
    if content is None:
        return ContextSchema()
    try:
        return schema_from_bytes(msgspec.json.encode(content.get("schema")))
    except ValueError as exc:
        raise ArchiveFailedError(f"{directory / NAME} is damaged ({exc})") from exc
