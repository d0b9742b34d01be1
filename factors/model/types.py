"""The values that cross the border of `factors`: ratings in, a fitted model with its two tables out.

Invariant: a table row means the same wherever it is read. Rows of users are plain float32 vectors, those of
items words of 32 bits that are held as float32, covariances in fewer bits (`quantized_rows`). Only this
package knows what stands where; other packages store and move rows as bytes.
"""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

Float32s = npt.NDArray[np.float32]
Float64s = npt.NDArray[np.float64]
Int32s = npt.NDArray[np.int32]
Int64s = npt.NDArray[np.int64]
UInt8s = npt.NDArray[np.uint8]
Bools = npt.NDArray[np.bool_]

Feedback = Literal["explicit", "implicit"]
Link = Literal["gaussian", "ordinal"]
ContextKind = Literal["number", "category"]
"""What a field of the context of ratings holds: a number, or the code of a category, a whole number from 0.
"""


@dataclass(frozen=True, slots=True)
class Scale:
    """The rating scale: `low` <= rating <= `high`; `step` apart where the scale has steps, None where it has
    none.
    """

    low: float
    high: float
    step: float | None = None


@dataclass(frozen=True, slots=True)
class Ratings:
    """Ratings in coordinate form, each user's in the order in which they were made (or in any, where that is
    not known); where a pair stands twice the later position wins.

    `user_row`, `item_row`: int32 (n,); `value`: float64 (n,); `time`: float64 (n,), seconds since 1970, NaN
    if unknown. `context`: float32 (n, fields), numbers and codes of categories given with the ratings, NaN
    where one was not; None where none was.
    """

    user_row: Int32s
    item_row: Int32s
    value: Float64s
    time: Float64s
    context: Float32s | None = None

    def take(self, rows: Int64s | Bools | slice) -> "Ratings":
        """Return those at `rows` (positions, a mask, or a part) alone."""
        context = None if self.context is None else self.context[rows]
        return Ratings(self.user_row[rows], self.item_row[rows], self.value[rows], self.time[rows], context)


@dataclass(frozen=True, slots=True)
class Choices:
    """Events of all types in coordinate form, each user's in the order in which they were made; where a type
    of a pair stands twice the later position wins.

    As `Ratings`; `type_code`: uint8 (n,), 0 for a rating. `value`: of a rating the rating.
    """

    user_row: Int32s
    item_row: Int32s
    value: Float64s
    time: Float64s
    type_code: UInt8s

    def take(self, rows: Int64s | Bools) -> "Choices":
        """Return those at `rows` (positions, or a mask) alone."""
        return Choices(
            *(self.user_row[rows], self.item_row[rows], self.value[rows], self.time[rows]),
            self.type_code[rows],
        )

    def ratings(self) -> Ratings:
        """Return the ratings alone."""
        rated = self.type_code == 0
        return Ratings(self.user_row[rated], self.item_row[rated], self.value[rated], self.time[rated])


@dataclass(frozen=True, slots=True)
class Histories:
    """Rating histories of several rows in compressed form, each in the order in which it was written.

    History `j` is `other_row[offsets[j]:offsets[j + 1]]` (the item rows of a user, or the user positions of
    an item). Where an entry stands twice the last one wins; a NaN value takes the rating back.
    `offsets`: int64 (b + 1,); `other_row`: int32; `value`: float64; `time`: float64, seconds since 1970 or
    NaN. `type_code`: uint8, 0 for a rating, where events of other types stand between them, which only a
    ranking head reads; of these the last one of each type of an item wins. `context`: as in `Ratings`, a row
    for each entry.
    """

    offsets: Int64s
    other_row: Int32s
    value: Float64s
    time: Float64s
    type_code: UInt8s | None = None
    context: Float32s | None = None

    def part(self, start: int, stop: int) -> "Histories":
        """Return the histories from `start` to before `stop`."""
        entries = slice(int(self.offsets[start]), int(self.offsets[stop]))
        offsets = self.offsets[start : stop + 1] - self.offsets[start]
        codes = None if self.type_code is None else self.type_code[entries]
        context = None if self.context is None else self.context[entries]
        others, values, times = self.other_row[entries], self.value[entries], self.time[entries]
        return Histories(offsets, others, values, times, codes, context)

    def ratings(self) -> "Histories":
        """Return the same histories with the ratings alone."""
        if self.type_code is None:
            return self
        rated = self.type_code == 0
        offsets = np.concatenate([[0], np.cumsum(rated)])[self.offsets]
        context = None if self.context is None else self.context[rated]
        others, values, times = self.other_row[rated], self.value[rated], self.time[rated]
        return Histories(offsets, others, values, times, context=context)


@dataclass(frozen=True, slots=True)
class Model:
    """What a generation knows besides its two tables. Small (kilobytes), the same for every row.

    `rank`: number of latent dimensions k. `user_width`: float32 numbers in a row of the user table;
    `item_width`: words of 32 bits in a stored row of the item table. `parameters`: named float64 arrays
    (priors, noise, cut points, ...) whose meaning only this package knows.
    """

    rank: int
    link: Link
    scale: Scale
    user_width: int
    item_width: int
    parameters: dict[str, Float64s] = field(default_factory=dict)

    @property
    def feedback(self) -> Feedback:
        """What it was fitted to: ratings, or choices, of which a rating only says how sure they are."""
        # Only a fit to implicit feedback has a confidence in what was chosen.
        return "implicit" if "confidence" in self.parameters else "explicit"


BASIS = (
    *("prior", "item", "user", "user+item"),
    *("attributes", "item", "user+attributes", "user+item"),
    *("attributes", "attributes+item", "user", "user+item"),
    *("attributes", "attributes+item", "user+attributes", "user+item"),
)
"""What a score rests on, by its `basis` code: bit 0 = the item has ratings, bit 1 = the user has, bit 2 = the
item has none, but attributes, bit 3 = the user has none, but attributes.
"""


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores of m pairs. `rating`, `std`: float64 (m,) in units of the scale; `basis`: uint8 (m,), see
    `BASIS`.
    """

    rating: Float64s
    std: Float64s
    basis: npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Ranked:
    """Item rows, best first, with the number that ranked them. `item_rows`: int64 (n,); `scores`: float64
    (n,).
    """

    item_rows: Int64s
    scores: Float64s


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a score is what it is: `base` + sum(`contributions`) is the rating that `score` gives.

    `base`: what an unknown user would get; `item_rows` int32 (n,): what the user rated, each item once;
    `contributions` float64 (n,): by how much that rating, and having rated it at all, moved the score.
    """

    base: float
    item_rows: Int32s
    contributions: Float64s


@dataclass(frozen=True, slots=True)
class ItemStatistics:
    """What item rows say of themselves: `count` int64 (n,) ratings seen, `mean` float64 (n,) (NaN where
    none).
    """

    count: Int64s
    mean: Float64s
