"""Rows of a finished section, kept so that a run that was stopped goes on after it.

Invariant: rows come back only for the very settings that they were made with.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


def load(path: Path, settings: Mapping[str, Any], make: Callable[..., T]) -> list[T] | None:
    """Return the rows in `path`, each made by `make(**fields)`; None without any for these settings."""
    try:
        document = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    if document.get("settings") != _stamped(settings):
        return None
    return [make(**{name: _tuple(value) for name, value in row.items()}) for row in document["rows"]]


def save(path: Path, settings: Mapping[str, Any], rows: Sequence[Any]) -> None:
    """Write dataclasses of numbers, texts and tuples, whole or not at all."""
    # Renamed when it is whole: torn by a kill it would count as no rows, and all be measured again.
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    document = {"settings": _stamped(settings), "rows": [asdict(row) for row in rows]}
    unfinished.write_text(json.dumps(document) + "\n")
    unfinished.replace(path)


def _stamped(settings: Mapping[str, Any]) -> Any:
    # Another version may predict otherwise. Through JSON, as the file has it: tuples become lists.
    return json.loads(json.dumps({**settings, "version": version("foldin")}))


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
