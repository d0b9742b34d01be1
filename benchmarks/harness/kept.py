"""Rows of a finished section, kept so that a run that was stopped goes on after it.

Invariant: rows come back only for the very settings that they were made with.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from evaluation.report import write_whole

T = TypeVar("T")


def kept_or(
    path: Path,
    settings: Mapping[str, Any],
    make: Callable[..., T],
    measure: Callable[[], Sequence[T]],
    *,
    resume: bool,
) -> list[T]:
    """Return the rows in `path`, each made by `make(**fields)`, if there are any for these settings and
    `resume` says so; else keep what `measure` returns: dataclasses of numbers, texts and tuples.
    """
    stamped = _stamped(settings)
    if resume:
        with suppress(OSError, ValueError):
            document = json.loads(path.read_text())
            if document.get("settings") == stamped:
                return [
                    make(**{name: _tuple(value) for name, value in row.items()}) for row in document["rows"]
                ]
    found: list[Any] = list(measure())
    # Whole: torn by a kill it would count as no rows, and all be measured again.
    write_whole(path, json.dumps({"settings": stamped, "rows": [asdict(row) for row in found]}) + "\n")
    return found


def _stamped(settings: Mapping[str, Any]) -> Any:
    # Another version may predict otherwise. Through JSON, as the file has it: tuples become lists.
    return json.loads(json.dumps({**settings, "version": version("foldin")}))


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
