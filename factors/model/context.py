"""The context of ratings as columns of numbers, and what these do to a user.

Invariant: an encoding is learned once and never looks at the contexts that it encodes later; what was not
given, and what a fit could not know, is the mean and does nothing.

- A number is a column: less its mean, in standard deviations, at most `FARTHEST` of them.
- A category is a column for each code that enough ratings have: 1 where a rating has it, less the share of
  the ratings that do.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from factors.errors import ModelUnreadable
from factors.model.attributes import FARTHEST, LEAST_ROWS
from factors.model.types import ContextKind, Float32s, Float64s

# Of all fields together: the regression on them and on 17 dimensions is a matrix of 1,088 columns.
MOST_CONTEXT_COLUMNS = 64
# Rows whose columns are in memory at once.
_BLOCK = 1 << 16


@dataclass(frozen=True, slots=True)
class ContextEncoding:
    """How contexts become columns: those of `numbers` first, then those of `codes`.

    `numbers` (m, 3): field, mean and standard deviation of each; `codes` (c, 3): field, code and share of
    each, those of a field side by side.
    """

    numbers: Float64s
    codes: Float64s

    @property
    def width(self) -> int:
        """Number of columns."""
        return len(self.numbers) + len(self.codes)

    @property
    def fields(self) -> Float64s:
        """The field of each column, (width,)."""
        return np.concatenate([self.numbers[:, 0], self.codes[:, 0]])

    @property
    def keys(self) -> list[tuple[float, float]]:
        """What tells each column from the others in any encoding of the same fields."""
        numbers = [(field, -1.0) for field in self.numbers[:, 0].tolist()]
        return numbers + [(field, code) for field, code, _ in self.codes.tolist()]

    def encode(self, context: Float32s) -> Float64s:
        """Return the columns (n, width) of `context` (n, fields), which may have fewer or more fields."""
        columns = np.zeros((len(context), self.width))
        for at, (field, mean, std) in enumerate(self.numbers.tolist()):
            if field < context.shape[1]:
                value = (context[:, int(field)].astype(np.float64) - mean) / std
                columns[:, at] = np.clip(np.where(np.isnan(value), 0.0, value), -FARTHEST, FARTHEST)
        for field in np.unique(self.codes[:, 0]).tolist():
            (rows,) = np.nonzero(self.codes[:, 0] == field)
            if field < context.shape[1]:
                same = context[:, int(field), None] == self.codes[rows, 1]
                known = same.any(axis=1)
                columns[np.ix_(known, len(self.numbers) + rows)] = same[known] - self.codes[rows, 2]
        return columns


@dataclass(frozen=True, slots=True)
class ContextEffects:
    """What contexts do: with the columns `c` of one a user is at `x + c effects`; `effects` (width, d)."""

    encoding: ContextEncoding
    effects: Float64s

    def shifts(self, context: Float32s) -> Float64s:
        """Return by how much each `context` (n, fields) moves its user: (n, d)."""
        shift = np.empty((len(context), self.effects.shape[1]))
        for start in range(0, len(context), _BLOCK):
            part = slice(start, start + _BLOCK)
            shift[part] = self.encoding.encode(context[part]) @ self.effects
        return shift


def learn_context_encoding(context: Float32s | None, kinds: Sequence[ContextKind]) -> ContextEncoding | None:
    """Return the encoding of `context` (n, fields) whose fields are of these `kinds`; None where it has no
    column.
    """
    if context is None:
        return None
    numbers, codes, counts = [], [], []
    for field, kind in enumerate(kinds[: context.shape[1]]):
        value = context[:, field].astype(np.float64)
        value = value[np.isfinite(value)]
        if kind == "number":
            value = _within_reach(value)
            if len(value) >= LEAST_ROWS and value.std() > 0:
                numbers.append((field, value.mean(), value.std()))
            continue
        found, count = np.unique(value, return_counts=True)
        found, count = found[count >= LEAST_ROWS], count[count >= LEAST_ROWS]
        # A category that is always the same says nothing.
        if len(found) > 1:
            codes += [(field, code, n / count.sum()) for code, n in zip(found, count, strict=True)]
            counts += count.tolist()
    kept = np.sort(np.argsort(-np.array(counts), kind="stable")[: MOST_CONTEXT_COLUMNS - len(numbers)])
    encoding = ContextEncoding(
        np.array(numbers, dtype=np.float64).reshape(-1, 3),
        np.array(codes, dtype=np.float64).reshape(-1, 3)[kept],
    )
    return encoding if encoding.width else None


def _within_reach(value: Float64s) -> Float64s:
    """Return numbers (m,) with those that are far from most of the others cut: a single one that is off by
    far would be all of the standard deviation.
    """
    if len(value) < LEAST_ROWS:
        return value
    # Of a normal distribution a standard deviation on either side.
    low, middle, high = np.quantile(value, (0.16, 0.5, 0.84))
    reach = FARTHEST * (high - low) / 2
    # Where most are one and the same number, nothing says how far the others may be.
    return np.clip(value, middle - reach, middle + reach) if reach > 0 else value


def check_encoding(encoding: ContextEncoding) -> None:
    """Raise `ModelUnreadable` where an encoding that was stored cannot be one."""
    fields, std = encoding.fields, encoding.numbers[:, 2]
    if encoding.width > MOST_CONTEXT_COLUMNS or (fields < 0).any() or (fields % 1 > 0).any():
        raise ModelUnreadable("the columns of the context are not as they must be")
    if not (std > 0).all():
        raise ModelUnreadable("a number of the context has no standard deviation")
