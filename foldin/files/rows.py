"""Columns of a file become ratings: a row that is none is left out, with its line and the reason.

Invariant: columns are checked as a whole, and value by value only where one is bad; both give the same.
"""

import math
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from factors import Scale
from featurestore.codecs import MAX_TIMESTAMP
from featurestore.ratings.event_types import RATING
from foldin.files.contexts import (
    SHOWN_CHARACTERS,
    Contexts,
    FileFields,
    Mask,
    Refuse,
    context_columns,
    context_rows,
    given_mask,
)
from foldin.files.layout import NUMBER

Lines = npt.NDArray[np.int64]
Values = npt.NDArray[np.float64]

MAX_ID_BYTES = 256  # as the API has it
STEP_TOLERANCE = 1e-6  # of a step: 0.1 + 0.2 is on a scale in tenths
MAX_DISTINCT = 1000  # more are as good as continuous
# Stars, and half stars.
USUAL = (Scale(1.0, 5.0, 1.0), Scale(0.5, 5.0, 0.5))
MAX_LEVELS = 101  # of a scale that is found in the data: 0 to 10 in tenths; more are as good as continuous
# As `service.http.parsing.checked_times` has it: what is later is no moment that has been.
_AHEAD_S = 86_400.0


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that is no rating. `line` counts from 1 (rows of a Parquet file do, too)."""

    line: int
    reason: str
    off_scale: bool = False


@dataclass(frozen=True, slots=True)
class Batch:
    """Ratings of one part of a file, in its order, each checked.

    Arrays are equally long, bad rows are not in them. `last_line`: where the part ends. `seen`: the different
    numbers of the rating column, on the scale or not (see `distinct`). `types`: names of types, where the
    file has a column of them; `ratings` are then the values of events. `contexts`: by field, where the file
    has any.
    """

    user_ids: pa.Array
    item_ids: pa.Array
    ratings: Values
    times: Values
    lines: Lines
    last_line: int
    bad: tuple[BadRow, ...]
    seen: Values
    types: pa.Array | None = None
    contexts: Contexts = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ratings)

    def after(self, line: int) -> "Batch":
        """Return the ratings after a line, for an import that goes on there."""
        if line <= 0 or (self.lines.size and line < self.lines[0]):
            return self
        bad = tuple(row for row in self.bad if row.line > line)
        return replace(self.only(self.lines > line), bad=bad)

    def lane(self, number: int, lanes: int) -> "Batch":
        """Return the ratings of the users of one of `lanes` lanes, in their order."""
        # Not hash(), which differs between processes: the same file gives the same calls.
        crc32 = zlib.crc32
        own = [crc32(user) % lanes == number for user in self.user_ids.to_pylist()]
        return self.only(np.array(own, bool))

    def only(self, keep: Mask) -> "Batch":
        """Return the ratings to keep."""
        mask = pa.array(keep, pa.bool_())
        return replace(
            self,
            user_ids=self.user_ids.filter(mask),
            item_ids=self.item_ids.filter(mask),
            ratings=self.ratings[keep],
            times=self.times[keep],
            lines=self.lines[keep],
            types=None if self.types is None else self.types.filter(mask),
            contexts={name: column.filter(mask) for name, column in self.contexts.items()},
        )


@dataclass(frozen=True, slots=True)
class RowRules:
    """What a rating must be: between the ends of the scale, as for the API. One without a time is from `now`,
    seconds since 1970. `fields`: of contexts; `check` adds those that it meets first.
    """

    scale: Scale
    now: float
    fields: FileFields = field(default_factory=FileFields)

    def check(
        self, columns: dict[str, pa.Array], lines: Lines, last_line: int, torn: tuple[BadRow, ...] = ()
    ) -> Batch:
        """Check columns `user`, `item`, `rating`, perhaps `timestamp`, `type` and `context.NAME`, equally
        long. `torn`: rows that gave no columns.

        With types only a row of the type `rating` must be on the scale; others have any value, or 1.
        """
        bad: dict[int, BadRow] = {}

        def refuse(mask: Mask, reason: Callable[[int], str], *, off_scale: bool = False) -> None:
            # Of a row with several reasons the first one counts.
            for position in np.flatnonzero(mask).tolist():
                line = int(lines[position])
                bad.setdefault(position, BadRow(line, reason(position), off_scale))

        users = _ids(columns["user"], "user", refuse)
        items = _ids(columns["item"], "item", refuse)
        types, rated = None, np.ones(len(lines), bool)
        if "type" in columns:
            types = _ids(columns["type"], "type", refuse)
            rated = pc.equal(types, RATING.encode()).to_numpy(zero_copy_only=False)
        ratings = _numbers(_values(columns.get("rating"), rated), "rating", _number, refuse)
        if "timestamp" in columns:
            times = _numbers(columns["timestamp"], "timestamp", _time, refuse)
            refuse(np.abs(times) > MAX_TIMESTAMP, lambda _: "timestamp is too far from 1970")
            # Not as the API alone: an import may write to the store itself.
            ahead = times > self.now + _AHEAD_S
            refuse(ahead, lambda _: "timestamp lies more than a day ahead: are these milliseconds?")
        else:
            times = np.full(len(lines), self.now)
        seen = distinct(ratings[rated])
        refuse(
            beyond(ratings, self.scale) & rated,
            lambda position: f"rating {ratings[position]:g} is off the scale",
            off_scale=True,
        )
        everywhere = np.arange(len(lines))
        # What only bad rows give takes no room.
        contexts = context_columns(
            columns, self.fields, refuse, lambda: ~np.isin(everywhere, list(bad)) & rated
        )
        if not rated.all():
            refuse(given_mask(contexts, len(lines)) & ~rated, lambda _: "a rating may have a context")
        rows = tuple(sorted((*bad.values(), *torn), key=lambda row: row.line))
        batch = Batch(users, items, ratings, times, lines, last_line, rows, seen, types, contexts)
        keep = np.ones(len(lines), bool)
        keep[list(bad)] = False
        return batch.only(keep) if bad else batch


def _values(column: pa.Array | None, rated: Mask) -> pa.Array:
    """Return the column of ratings, with 1 where an event of another type has no value."""
    if column is None:
        # A rating without a value is refused as a row.
        return pa.array(np.ones(len(rated)), mask=rated)
    if rated.all():
        return column
    missing, one = column.is_null(), pa.scalar(1)
    if pa.types.is_binary(column.type) or pa.types.is_string(column.type):
        missing = pc.or_(missing, pc.equal(pc.binary_length(column), 0).fill_null(fill_value=True))
        one = one.cast(pa.string())
    return pc.if_else(pc.and_(missing, pa.array(~rated)), one.cast(column.type), column)


def beyond(ratings: Values, scale: Scale) -> Mask:
    """Return which ratings are beyond the ends of the scale; NaN is not."""
    return (ratings < scale.low) | (ratings > scale.high)


def off_scale(ratings: Values, scale: Scale) -> Mask:
    """Return which ratings are beyond the ends of the scale, or between its steps. NaN is neither."""
    off = beyond(ratings, scale)
    if scale.step is not None:
        steps = (ratings - scale.low) / scale.step
        off |= np.abs(steps - np.round(steps)) > STEP_TOLERANCE
    return off


def scale_of(ratings: Values) -> Scale:
    """Return the scale of these ratings (one at least): their ends, and their step where they keep one.

    Equal ratings are the low end of a scale one wide.
    """
    found = np.unique(ratings)
    low, high = float(found[0]), float(found[-1])
    if low == high:
        return Scale(low, low + 1.0)
    step = float(np.diff(found).min())
    n_steps = round((high - low) / step)
    if n_steps >= MAX_LEVELS or off_scale(found, Scale(low, high, step)).any():
        return Scale(low, high)
    return Scale(low, high, (high - low) / n_steps)


def scale_for(ratings: Values) -> Scale:
    """Return the scale that a store would have for these ratings, none or more: a usual one where they lie on
    it, though perhaps none of them is at its ends, else their own.
    """
    usual = next((each for each in USUAL if not off_scale(ratings, each).any()), None)
    scale = usual or scale_of(ratings)
    # Two values say nothing of a step, and a fit finds by itself that ratings are whole.
    plain = scale.step == 1.0 or np.unique(ratings).size <= 2
    return Scale(scale.low, scale.high) if plain else scale


def distinct(values: Values) -> Values:
    """Return the different finite numbers among `values` in order; of many, some, with both ends."""
    found: Values = np.unique(values[np.isfinite(values)])
    if found.size <= MAX_DISTINCT:
        return found
    # Still so many that they keep no step.
    return found[np.linspace(0, found.size - 1, MAX_DISTINCT).astype(np.intp)]


def _ids(column: pa.Array, role: str, refuse: Refuse) -> pa.Array:
    """Return the ids as bytes; refuse those that are missing, empty, too long, or not UTF-8."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_integer(column.type):
        column = column.cast(pa.string())
    missing = column.is_null().to_numpy(zero_copy_only=False)
    refuse(missing, lambda _: f"{role} is missing")
    raw = column.cast(pa.binary()).fill_null(b"")
    lengths = pc.binary_length(raw).to_numpy(zero_copy_only=False)
    refuse(lengths == 0, lambda _: f"{role} is empty")
    refuse(
        lengths > MAX_ID_BYTES,
        lambda position: f"{role} has {lengths[position]} bytes, more than {MAX_ID_BYTES}",
    )
    try:
        raw.cast(pa.string())  # fails for the whole column at once
    except pa.ArrowInvalid:
        broken = np.array([not _is_utf8(value) for value in raw.to_pylist()], bool)
        refuse(broken, lambda _: f"{role} is not UTF-8: convert the file, as by iconv -f latin1 -t utf-8")
    return raw


def _is_utf8(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


def _numbers(column: pa.Array, role: str, parse: Callable[[str], float], refuse: Refuse) -> Values:
    """Return the numbers of a column, NaN where there is none, which is refused."""
    kind = column.type
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        # Whole microseconds first: a cast of other units straight to float loses parts of a second.
        column = column.cast(pa.timestamp("us"), safe=False).cast(pa.int64())
        values = _plain(column) / 1e6
    elif pa.types.is_string(kind) or pa.types.is_binary(kind) or pa.types.is_large_string(kind):
        try:
            values = _plain(column.cast(pa.string()).cast(pa.float64()))
        except pa.ArrowInvalid:
            texts = [_text(value) for value in column.to_pylist()]
            values = np.array([parse(text) for text in texts], np.float64)
            refuse(
                np.isnan(values),
                lambda position: f"{role} is not a number: {_shown(texts[position])}",
            )
    else:
        values = _plain(column.cast(pa.float64(), safe=False))
    missing = column.is_null().to_numpy(zero_copy_only=False)
    refuse(missing, lambda _: f"{role} is missing")
    refuse(~np.isfinite(values), lambda _: f"{role} is not a finite number")
    return values


def _plain(column: pa.Array) -> Values:
    values: Values = column.cast(pa.float64()).to_numpy(zero_copy_only=False)
    return np.array(values, np.float64)


def _text(value: bytes | str | None) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value or ""


def _shown(text: str) -> str:
    """Return a text that is no number, with what helps where it has a decimal comma."""
    with_point = text.strip().replace(",", ".")
    hint = f" (write {with_point})" if text.count(",") == 1 and NUMBER.fullmatch(with_point) else ""
    return f"{text[:SHOWN_CHARACTERS]!r}{hint}"


def _number(text: str) -> float:
    """Return a decimal number with or without spaces around it, or NaN."""
    # Not float() alone: it takes 1_000 and digits of other scripts, which the parser of columns does not.
    stripped = text.strip(" ")
    return float(stripped) if NUMBER.fullmatch(stripped) else math.nan


def _time(text: str) -> float:
    """Return seconds since 1970 from a number or ISO 8601 (UTC where no zone is named), or NaN."""
    number = _number(text)
    if not math.isnan(number) or not re.match(r"\d{4}-\d\d-\d\d", text.strip(" ")):
        return number
    try:
        moment = datetime.fromisoformat(text.strip(" "))
    except ValueError:
        return math.nan
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def pieces(batch: Batch, size: int) -> Iterator[tuple[list[Any], list[int]]]:
    """Yield a batch in pieces of at most `size` ratings: rows for a `foldin.sinks.Sink`, and their lines."""
    for start in range(0, len(batch), size):
        part = slice(start, start + size)
        lines = batch.lines[part].tolist()
        nothing = [None] * len(lines)
        rows = zip(
            batch.user_ids.slice(start, size).to_pylist(),
            batch.item_ids.slice(start, size).to_pylist(),
            batch.ratings[part].tolist(),
            batch.times[part].tolist(),
            nothing if batch.types is None else batch.types.slice(start, size).to_pylist(),
            context_rows(batch.contexts, start, size) if batch.contexts else nothing,
            strict=True,
        )
        yield list(rows), lines
