"""Small JSON files beside the segments. Invariant: such a file is there whole or not at all, and one of a
format that this version does not know is refused, never changed.
"""

import json
from typing import Any

from trainer.archive.storage.client import ObjectStoreError
from trainer.archive.storage.files import Location, write_whole
from trainer.errors import ArchiveFailedError, other_format

# Grows when a file of today could not be read by an older trainer.
FORMAT = 1


def write_json(path: Location, content: dict[str, Any]) -> None:
    """Put a file in place, on disk when this returns. Raises OSError."""
    write_whole(path, (json.dumps({"format": FORMAT, **content}) + "\n").encode())


def read_json(path: Location) -> dict[str, Any] | None:
    """Return what a file says; None where there is none, nothing at all where it cannot be read.

    Raises `ArchiveRefusedError` for a format that is not this version's, `ArchiveFailedError` where a
    store of objects does not answer.
    """
    try:
        content = json.loads(path.read_text("utf-8"))
        number = int(content["format"])
    except FileNotFoundError:
        return None
    except ObjectStoreError as exc:
        raise ArchiveFailedError(f"cannot read {path}: {exc.strerror}") from exc
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}
    if number != FORMAT:
        raise other_format(path, number, FORMAT)
    return dict(content)
