"""Small JSON files beside the segments. Invariant: such a file is there whole or not at all, and one of a
format that this version does not know is refused, never changed.
"""

import json
import os
from pathlib import Path
from typing import Any

from trainer.archive.segments import TEMPORARY, sync_directory
from trainer.errors import ArchiveRefusedError

# Grows when a file of today could not be read by an older trainer.
FORMAT = 1


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Put a file in place, on disk when this returns. Raises OSError."""
    temporary = path.with_name(path.name + TEMPORARY)
    with temporary.open("w", encoding="utf-8") as file:
        file.write(json.dumps({"format": FORMAT, **content}) + "\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
    sync_directory(path.parent)


def read_json(path: Path) -> dict[str, Any] | None:
    """Return what a file says; None where there is none, nothing at all where it cannot be read.

    Raises `ArchiveRefusedError` for a format that is newer than this version's.
    """
    try:
        content = json.loads(path.read_text("utf-8"))
        number = int(content["format"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}
    if number > FORMAT:
        raise ArchiveRefusedError(
            f"{path} has format {number}, this version reads up to {FORMAT}: use the version that wrote it"
        )
    return dict(content)
