"""An index of a large catalogue: items in lists of neighbours, of which a search reads a few.

Invariant: the recall that an index states was measured on users that had no part in choosing how many lists a
search reads.

The inverted file of Jégou, Douze and Schmid (2011) without compression: k-means over the points, which are
`[latent, bias]` of the items, or their factors in the ranking head; lists ranked by the inner product of
their centre with `[latent of the user, 1]`, or with the user's vector in the head.
"""

import math
from dataclasses import dataclass

import msgspec
import numpy as np
import numpy.typing as npt

from factors.errors import ModelUnreadable
from factors.model.layout import FloatTable, item_layout, user_layout
from factors.model.types import Float32s, Int64s, Model

# Depth of the rankings by which an index is measured: what a client sees first.
TOP = 10
# From so many items on a table has an index: the exact product of fewer takes a few milliseconds.
INDEXED_ITEMS = 100_000
# Points whose products are in memory at once.
_BLOCK = 16_384

Lists = npt.NDArray[np.uint16]

_FORMAT = "foldin-index-1"


@dataclass(frozen=True, slots=True)
class Index:
    """`centres` float32 (c, dim); `lists` uint16 (n,): the list of each item row; `probes`: lists that a
    search reads; `recall`: part of the exact top 10 that it finds.
    """

    centres: Float32s
    lists: Lists
    probes: int
    recall: float


class _Bytes(msgspec.Struct, frozen=True, array_like=True):
    format: str
    dim: int
    probes: int
    recall: float
    centres: bytes
    lists: bytes


def index_to_bytes(index: Index) -> bytes:
    """Return `index` as bytes, little endian."""
    centres = np.asarray(index.centres, dtype="<f4")
    lists = np.asarray(index.lists, dtype="<u2")
    return msgspec.msgpack.encode(
        _Bytes(_FORMAT, centres.shape[1], index.probes, index.recall, centres.tobytes(), lists.tobytes())
    )


def index_from_bytes(payload: bytes, model: Model, n_items: int) -> Index:
    """Return the index of a table of `n_items` rows. Raises `ModelUnreadable` where the bytes are none."""
    return read_index(payload, item_layout(model).dim, n_items)


def read_index(payload: bytes, dim: int, n_items: int) -> Index:
    """Return the index of `n_items` points of dimension `dim`. Raises as `index_from_bytes`."""
    try:
        read = msgspec.msgpack.decode(payload, type=_Bytes)
    except msgspec.MsgspecError as exc:
        raise ModelUnreadable(f"not an index: {exc}") from exc
    fits = (read.format, read.dim, len(read.lists)) == (_FORMAT, dim, 2 * n_items)
    if not fits or len(read.centres) % (4 * dim):
        raise ModelUnreadable(
            f"an index {read.format!r} that does not fit {n_items} items of dimension {dim}"
        )
    centres = np.frombuffer(read.centres, dtype="<f4").reshape(-1, dim).astype(np.float32)
    lists = np.frombuffer(read.lists, dtype="<u2").astype(np.uint16)
    if n_items == 0 or int(lists.max()) >= len(centres) or not 0 < read.probes <= len(centres):
        raise ModelUnreadable("an index whose lists do not exist")
    return Index(centres, lists, read.probes, read.recall)


def build_index(
    model: Model,
    items: FloatTable,
    users: FloatTable,
    rng: np.random.Generator,
    *,
    least_items: int = INDEXED_ITEMS,
) -> Index | None:
    """Return an index of `items` (n, item_width) for users like `users` (u, user_width), or None where it
    would not pay.

    None for fewer than `least_items` items, of which the exact product takes a few milliseconds, for no
    users, and where a search would have to read so many lists that the exact product is as fast. About 20 s
    of one core for a million items of rank 50.
    """
    if len(items) < least_items or len(users) == 0:
        return None
    points = np.ascontiguousarray(items[:, item_layout(model).mean], dtype=np.float32)
    return index_of(points, query_features(model, users), rng, least_items=least_items)


def index_of(
    points: Float32s, users: Float32s, rng: np.random.Generator, *, least_items: int = INDEXED_ITEMS
) -> Index | None:
    """Return an index of `points` (n, dim) for users like `users` (u, dim), by whose products with the points
    these are ranked; None as by `build_index`.
    """
    if len(points) < least_items or len(users) == 0:
        return None
    # Half of these users choose and half measure: the recall of 2,000 items is known to half a percent.
    chosen = rng.choice(len(users), min(400, len(users)), replace=False)
    queries = users[np.sort(chosen)]
    # Twice the root balances the product with the centres and the products in the lists that are read. The
    # number of a list is stored in 16 bits.
    count = min(max(2, 2 * math.isqrt(len(points))), np.iinfo(np.uint16).max)
    centres = _centres(points, count, rng)
    lists = _nearest(points, centres).astype(np.uint16)
    needed = _lists_needed(points, centres, lists, queries)
    choose, measure = needed[::2], needed[1::2] if len(needed) > 1 else needed
    found = np.array([np.mean(choose <= probes) for probes in range(1, count + 1)])
    # The users that choose aim above 95 %, so that those that measure find that much.
    probes = int(np.argmax(found >= 0.965)) + 1
    recall = float(np.mean(measure <= probes))
    # With more than a sixth of the lists to read, the exact product is as fast.
    if probes > 1 / 6 * count or recall < 0.95:
        return None
    return Index(centres, lists, probes, recall)


def query_features(model: Model, users: FloatTable) -> Float32s:
    """Return `[latent, 1]` of users (u, user_width), float32 (u, dim): its product with an item's mean ranks
    the items of that user.
    """
    features = users[:, user_layout(model).mean].astype(np.float32)
    features[:, -1] = 1.0
    return features


def _centres(points: Float32s, count: int, rng: np.random.Generator) -> Float32s:
    """Return the centres of Lloyd's algorithm on a sample."""
    # With 32 points for each list and six rounds a million items take 20 s of one core.
    size = min(len(points), 32 * count)
    sample = points[np.sort(rng.choice(len(points), size, replace=False))]
    centres = sample[rng.choice(size, count, replace=False)].copy()
    for _ in range(6):
        nearest = _nearest(sample, centres)
        order = np.argsort(nearest, kind="stable")
        held, starts = np.unique(nearest[order], return_index=True)
        sums = np.add.reduceat(sample[order], starts, axis=0)
        sizes = np.diff(np.append(starts, size))
        # A list that lost all its points begins anew at a random one.
        centres = sample[rng.choice(size, count, replace=False)].copy()
        centres[held] = sums / sizes[:, None]
    return centres


def _nearest(points: Float32s, centres: Float32s) -> Int64s:
    # |p - c|^2 without |p|^2, which is the same for every centre.
    half = 0.5 * np.einsum("ij,ij->i", centres, centres)
    nearest = np.empty(len(points), dtype=np.int64)
    for start in range(0, len(points), _BLOCK):
        part = points[start : start + _BLOCK] @ centres.T
        part -= half
        nearest[start : start + _BLOCK] = part.argmax(axis=1)
    return nearest


def _lists_needed(points: Float32s, centres: Float32s, lists: Lists, queries: Float32s) -> Int64s:
    """Return how many lists a search must read to find each of the exact top 10 of each query: (queries,
    10).
    """
    top = min(TOP, len(points))
    scores = np.zeros((len(queries), 0), dtype=np.float32)
    rows = np.zeros((len(queries), 0), dtype=np.int64)
    for start in range(0, len(points), _BLOCK):
        part = queries @ points[start : start + _BLOCK].T
        best = np.argpartition(-part, min(top, part.shape[1]) - 1, axis=1)[:, :top]
        scores = np.concatenate([scores, np.take_along_axis(part, best, axis=1)], axis=1)
        rows = np.concatenate([rows, best + start], axis=1)
        kept = np.argsort(-scores, axis=1)[:, :top]
        scores, rows = np.take_along_axis(scores, kept, axis=1), np.take_along_axis(rows, kept, axis=1)
    ranked = np.argsort(-(queries @ centres.T), axis=1)
    # The rank of each list for each query, from 1.
    ranks = np.argsort(ranked, axis=1) + 1
    return np.take_along_axis(ranks, lists[rows].astype(np.int64), axis=1)
