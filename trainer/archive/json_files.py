"""Small JSON files beside the segments. Invariant: such a file is there whole or not at all, and one of a
format that this version does not know is refused, never changed.
"""

import json
from pathlib import Path
from typing import Any

from trainer.archive.files import write_whole
from trainer.errors import other_format

# Grows when a file of today could not be read by an older trainer.
FORMAT = 1


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Put a file in place, on disk when this returns. Raises OSError."""
    write_whole(path, (json.dumps({"format": FORMAT, **content}) + "\n").encode())


def read_json(path: Path) -> dict[str, Any] | None:
    """Return what a file says; None where there is none, nothing at all where it cannot be read.

    Raises `ArchiveRefusedError` for a format that is not this version's.
    """
    try:
        content = json.loads(path.read_text("utf-8"))
        number = int(content["format"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}
    if number != FORMAT:
        raise other_format(path, number, FORMAT)
    return dict(content)
