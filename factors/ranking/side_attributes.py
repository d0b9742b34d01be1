"""What a generation knows of attributes of items or of users: how they are encoded, and, of items, what they
say of relevance.

Invariant: an item without events by which it was wanted has the factors that its attributes say, in the fit
as in a fold-in; of one with such events they say the less the more there are (`half_steps.py`).
"""

from dataclasses import dataclass
from typing import Literal

import msgspec
import numpy as np

from factors.errors import ModelUnreadable
from factors.model.attributes import Encoding, encoding_from_bytes, encoding_to_bytes
from factors.model.columns import Columns
from factors.model.layout import COUNT, MAX_RANK, RATING_MEAN
from factors.model.types import Bools, Float32s, Float64s, Int64s, UInt8s
from factors.training.effects.attribute_effects import AttributeEffects

_FORMAT: Literal["foldin-item-attributes-1"] = "foldin-item-attributes-1"


class _Bytes(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: Literal["foldin-item-attributes-1"]
    encoding: bytes
    rank: int
    relevance: bytes


@dataclass(frozen=True, slots=True)
class SideAttributes:
    """The `encoding`, and `relevance` (1 + c, r): the factors in the ranking head of a typical item, and what
    each column adds to them; None where it adds nothing that is known.
    """

    encoding: Encoding
    relevance: Float64s | None = None

    def factors(self, columns: Columns) -> Float32s | None:
        """Return the factors (n, r) of items with these attributes and no events, 0 without attributes; None
        where nothing is known of relevance.
        """
        return None if self.relevance is None else factors_of(self.relevance, columns)


def factors_of(relevance: Float64s, columns: Columns) -> Float32s:
    """Return the factors (n, r) that `relevance` (1 + c, r) gives items with these attributes; 0 without."""
    found = relevance[0] + columns.times(relevance[1:])
    return np.where(columns.described[:, None], found, 0.0).astype(np.float32)


def mark_described(items: Float32s, rows: Int64s) -> None:
    """Write into `items` (n_items, item_width) that the factors of `rows` are `factors_of` attributes."""
    # What has ratings has its mean there, and no factors of attributes.
    rows = rows[items[rows, COUNT] == 0]
    items[rows, RATING_MEAN] = np.where(items[rows, RATING_MEAN] > 0, 2.0, -1.0)


def relevance_basis(items: Float32s, factors: Float32s, rows: Int64s, *, has_events: bool) -> UInt8s:
    """Return what the relevance of `rows` (m,) rests on, as codes of `BASIS` (m,), to a user of whom there
    are events or not.

    `items` (n_items, item_width) and `factors` (n_factors, r): those of the generation and of its head; of a
    row beyond either nothing is known.
    """
    basis = np.full(len(rows), 2 * has_events, dtype=np.uint8)
    known = np.flatnonzero((rows >= 0) & (rows < min(len(items), len(factors))))
    # Factors are 0 where neither events nor attributes tell anything.
    known = known[factors[rows[known]].any(axis=1)]
    count, mean = items[rows[known], COUNT], items[rows[known], RATING_MEAN]
    described = (count == 0) & ((mean < 0) | (mean == 2))
    basis[known] += np.where(described, 4, 1).astype(np.uint8)
    return basis


def learn_relevance(
    columns: Columns, factors: Float32s, chosen: Bools, user_gram: Float64s
) -> Float64s | None:
    """Return the `relevance` of `SideAttributes` from the `factors` (n, r) of the `chosen` items (n,); None
    where items that are left out say that attributes tell nothing.

    `user_gram` (r, r): second moments of the users, in any unit. A factor counts by what it changes in the
    relevance to them, not by how rare it is among items.
    """
    table = factors.astype(np.float64)
    typical = table[chosen].mean(axis=0)
    deviations = np.where(chosen[:, None], table - typical, 0.0)
    size = float(np.einsum("nr,rs,ns->", deviations, user_gram, deviations)) / max(int(chosen.sum()), 1)
    if columns.width == 0 or size <= 0.0:
        return None
    # As a precision has it: the square of a deviation is its length, on average.
    precision = user_gram * (len(user_gram) / size)
    regression = AttributeEffects(columns, chosen)
    if not regression.helps(deviations, precision):
        return None
    return np.vstack([typical, regression.learn(deviations, precision)])


def side_attributes_to_bytes(attributes: SideAttributes) -> bytes:
    """Return them as bytes; the same bytes for the same attributes."""
    relevance = attributes.relevance
    rank = 0 if relevance is None else relevance.shape[1]
    data = b"" if relevance is None else relevance.astype("<f8").tobytes()
    return msgspec.msgpack.encode(_Bytes(_FORMAT, encoding_to_bytes(attributes.encoding), rank, data))


def side_attributes_from_bytes(payload: bytes | memoryview) -> SideAttributes:
    """Return what `side_attributes_to_bytes` wrote. Raises `ModelUnreadable` for anything else."""
    try:
        read = msgspec.msgpack.decode(payload, type=_Bytes)
    except msgspec.MsgspecError as exc:
        raise ModelUnreadable(f"no attributes: {exc}") from exc
    encoding = encoding_from_bytes(read.encoding)
    # As float64: 8 bytes each.
    if not 0 <= read.rank <= MAX_RANK or len(read.relevance) != 8 * read.rank * (1 + encoding.width):
        raise ModelUnreadable("attributes whose relevance has another shape")
    if read.rank == 0:
        return SideAttributes(encoding)
    relevance = np.frombuffer(read.relevance, dtype="<f8").reshape(1 + encoding.width, read.rank)
    if not np.isfinite(relevance).all():
        raise ModelUnreadable("attributes that are not finite")
    return SideAttributes(encoding, relevance.astype(np.float64))
