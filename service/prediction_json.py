"""Scores as they are answered: rounded, and as JSON in bulk.

Invariant: one pair is answered with the same digits by every call that answers it.

On a scale at least 1 wide a rating is rounded to a millionth, and so is what stands beside ratings. So the
texts of all numbers have one width, and a batch is written as columns of bytes: 0.2 ms for 10,000 scores, and
7 ms with an object for each.
"""

from collections.abc import Sequence
from functools import lru_cache

import msgspec
import numpy as np
import numpy.typing as npt

from factors import BASIS, Float64s, Scale, Scores

# A rating is never known better than to a millionth of a step; six digits also have one width.
_MILLIONTHS = 1e6
# On narrower scales a millionth would show: their numbers stay as they are.
_NARROWEST = 1.0
# Digits before the point that a column of bytes has room for; wider numbers are rare and written one by one.
_WIDTHS = (1, 2, 4)


class Prediction(msgspec.Struct):
    """One score: the expected rating, its standard deviation and what it rests on."""

    rating: float
    std: float
    basis: str


class OnePrediction(Prediction, omit_defaults=True):
    """The answer of GET /predict. `distribution`: probability of each step of the scale, lowest first.
    `degraded`: the store is away, and the answer may lack ratings that were acknowledged.
    """

    generation: int
    distribution: list[float] | None = None
    degraded: bool = False


def _digits(count: int, kind: type, *, padded: bool = False) -> npt.NDArray[np.unsignedinteger]:
    """Return the `count` digits of every number that has no more, as one integer of these bytes each."""
    form = b"%*d" if padded else b"%0*d"
    text = b"".join([form % (count, number) for number in range(10**count)])
    return np.frombuffer(text, dtype=kind)


_FOUR, _TWO = _digits(4, np.uint32), _digits(2, np.uint16)
_WHOLE = {
    width: _digits(width, kind, padded=True)
    for width, kind in zip(_WIDTHS, (np.uint8, np.uint16, np.uint32), strict=True)
}


def rounded(scores: Scores, scale: Scale) -> Scores:
    """Return `scores` as they are answered."""
    if scale.high - scale.low < _NARROWEST:
        return scores
    # Both at once: for a few pairs the number of calls into numpy is all that counts.
    both = np.concatenate((scores.rating, scores.std))
    both *= _MILLIONTHS
    np.rint(both, out=both)
    rating, std = both[: len(scores.rating)], both[len(scores.rating) :]
    # A standard deviation is above 0, however little.
    np.maximum(std, 1.0, out=std)
    both /= _MILLIONTHS
    return Scores(rating, std, scores.basis)


def shown(values: Float64s, scale: Scale) -> list[float]:
    """Return `values` (m,), of what belongs to ratings on `scale`, with as many digits as these have."""
    if scale.high - scale.low >= _NARROWEST:
        # Adding 0 makes -0 a 0: it is no number that people write.
        values = np.rint(values * _MILLIONTHS) / _MILLIONTHS + 0.0
    found: list[float] = values.tolist()
    return found


def significant(values: Float64s) -> list[float]:
    """Return `values` (m,), scores that have no unit, with six digits that are not leading zeros."""
    return [float(f"{value:.6g}") for value in values.tolist()]


class PredictionWriter:
    """Writes the scores of ratings on one scale."""

    def __init__(self, scale: Scale) -> None:
        width = next((width for width in _WIDTHS if max(scale.high, 1.0) < 10**width), _WIDTHS[-1])
        self._whole = _WHOLE[width]
        # On a narrow scale no number has this form.
        rounds = scale.high - scale.low >= _NARROWEST
        self._limit = 10.0**width - 0.5 / _MILLIONTHS if rounds else 0.0
        number = b"0" * width + b".000000"
        lines = [b'{"rating":%b,"std":%b,"basis":"%b"},' % (number, number, name.encode()) for name in BASIS]
        longest = max(map(len, lines))
        # Blanks between the elements of an array mean nothing.
        padded = b"".join([line.ljust(longest) for line in lines])
        self._lines = np.frombuffer(padded, dtype=np.uint8).reshape(len(BASIS), longest)
        starts = [len(b'{"rating":'), len(b'{"rating":,"std":') + len(number)]
        self._digits = np.dtype(
            {
                "names": [f"{part}{column}" for column in range(2) for part in ("whole", "four", "two")],
                "formats": [self._whole.dtype, np.uint32, np.uint16] * 2,
                "offsets": [
                    start + offset for start in starts for offset in (0, width + 1, width + 1 + len("0000"))
                ],
                "itemsize": longest,
            }
        )

    def elements(self, scores: Scores) -> bytes:
        """Return the elements of a JSON array for scores that are `rounded`, each with a comma behind it."""
        numbers = (scores.rating, scores.std)
        if not all(_within(values, self._limit) for values in numbers):
            return b"".join([each + b"," for each in _one_by_one(scores)])
        lines = self._lines.take(scores.basis, axis=0)
        digits = lines.view(self._digits)[:, 0]
        for column, values in enumerate(numbers):
            millionths = np.rint(values * _MILLIONTHS).astype(np.int64)
            upper = millionths // 100
            digits[f"two{column}"] = _TWO.take(millionths - upper * 100)
            whole = upper // 10_000
            digits[f"four{column}"] = _FOUR.take(upper - whole * 10_000)
            digits[f"whole{column}"] = self._whole.take(whole)
        return lines.tobytes()


# A service has one scale, but each fit may find other steps in it.
@lru_cache(maxsize=8)
def writer(scale: Scale) -> PredictionWriter:
    """Return the writer for a scale."""
    return PredictionWriter(scale)


def _within(values: Float64s, limit: float) -> bool:
    return len(values) == 0 or bool(values.min() >= 0.0 and values.max() < limit)


def _one_by_one(scores: Scores) -> Sequence[bytes]:
    basis = map(BASIS.__getitem__, scores.basis.tolist())
    return list(map(msgspec.json.encode, map(Prediction, scores.rating.tolist(), scores.std.tolist(), basis)))
