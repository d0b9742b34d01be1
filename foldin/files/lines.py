"""Lines of NDJSON, as `POST /ratings` takes and `foldin export` writes them, become columns for `RowRules`.

Invariant: a line that is no such rating is a bad row with the number of that line, and no more columns are
made than contexts may have fields.
"""

from math import isfinite

import msgspec
import numpy as np
import pyarrow as pa

from featurestore.ratings.context_schema import MOST_FIELDS, ContextKind
from foldin.files.contexts import SHOWN_CHARACTERS
from foldin.files.rows import BadRow, Lines, RowRules
from foldin.settings import CONTEXT_PREFIX

Value = float | str | bool


class _Line(msgspec.Struct, forbid_unknown_fields=True):
    user_id: str | int
    item_id: str | int
    rating: float
    timestamp: float | str | None = None
    context: dict[str, Value | None] | None = None


_DECODER = msgspec.json.Decoder(_Line)


def parse_lines(
    data: bytes, first: int, rules: RowRules
) -> tuple[dict[str, pa.Array], Lines, tuple[BadRow, ...]]:
    """Return the columns of whole lines, the number of the line of each row, and the lines that are none.
    `first`: the number of the first line.
    """
    rows: list[_Line] = []
    lines: list[int] = []
    bad: list[BadRow] = []
    contexts: dict[str, dict[int, Value]] = {}
    kinds: dict[str, ContextKind] = {}
    for number, text in enumerate(data.split(b"\n"), first):
        if not text.strip():
            continue
        try:
            row = _DECODER.decode(text)
        except (msgspec.DecodeError, UnicodeDecodeError) as exc:
            bad.append(BadRow(number, str(exc)))
            continue
        given = {name: value for name, value in (row.context or {}).items() if value is not None}
        if len(contexts.keys() | given.keys()) > MOST_FIELDS:
            bad.append(BadRow(number, f"context: a file may give {MOST_FIELDS} fields"))
            continue
        for name in given.keys() - kinds.keys():
            kinds[name] = rules.fields.told(name, _kind(given[name]))
        if wrong := [name for name, value in given.items() if kinds[name] != _kind(value)]:
            shown = repr(given[wrong[0]])[:SHOWN_CHARACTERS]
            bad.append(BadRow(number, f"{CONTEXT_PREFIX}{wrong[0]} is of another kind than {shown}"))
            continue
        for name, value in given.items():
            contexts.setdefault(name, {})[len(rows)] = value
        rows.append(row)
        lines.append(number)
    columns = {
        "user": pa.array([str(row.user_id) for row in rows], pa.string()),
        "item": pa.array([str(row.item_id) for row in rows], pa.string()),
        "rating": pa.array([row.rating for row in rows], pa.float64()),
    }
    if any(row.timestamp is not None for row in rows):
        columns["timestamp"] = _times([row.timestamp for row in rows], rules.now)
    for name, values in contexts.items():
        column = [values.get(place) for place in range(len(rows))]
        is_text = any(isinstance(value, str) for value in values.values())
        columns[CONTEXT_PREFIX + name] = (
            pa.array(column, pa.string())
            if is_text
            else pa.array([None if value is None else float(value) for value in column], pa.float64())
        )
    return columns, np.array(lines, np.int64), tuple(bad)


def _kind(value: Value) -> ContextKind:
    return "category" if isinstance(value, str) else "number"


def _times(times: list[float | str | None], now: float) -> pa.Array:
    """Return times as numbers, or as texts where one is; `now` where a line has none, if that is known."""
    there = [now if time is None and isfinite(now) else time for time in times]
    if any(isinstance(time, str) for time in there):
        return pa.array([None if time is None else str(time) for time in there], pa.string())
    return pa.array(there, pa.float64())
