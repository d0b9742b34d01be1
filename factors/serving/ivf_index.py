"""An index of a large catalogue: items in lists of neighbours, of which a search looks into a few. Invariant:
how much of the exact answer it finds was measured on users that had no part in choosing how many lists are
looked into.

The inverted file of Jégou, Douze and Schmid (2011) without compression: k-means over `[latent, bias]`, lists
ranked by the inner product of their centre with `[latent of the user, 1]`.
"""

import math
from dataclasses import dataclass

import msgspec
import numpy as np
import numpy.typing as npt

from factors.errors import ModelUnreadable
from factors.model.layout import FloatTable, item_layout, user_layout
from factors.model.types import Float32s, Int64s, Model

# The exact product over fewer takes a few milliseconds.
LEAST_ITEMS = 100_000
TOP = 10
_WANTED = 0.95
# What is aimed at on the users that choose, so that those that measure find what is wanted.
_AIM = 0.965
_ROUNDS = 6
_POINTS_PER_LIST = 32
_QUERIES = 400
# With more of the lists to look into, the exact product is as fast.
_LARGEST_SHARE = 1 / 6
_BLOCK = 16_384

Lists = npt.NDArray[np.uint16]


@dataclass(frozen=True, slots=True)
class Index:
    """`centres` float32 (c, dim); `lists` uint16 (n,): the list of each item row; `probes`: lists that a
    search looks into; `recall`: part of the exact top 10 that it finds.
    """

    centres: Float32s
    lists: Lists
    probes: int
    recall: float


class _Bytes(msgspec.Struct, frozen=True, array_like=True):
    form: str
    dim: int
    probes: int
    recall: float
    centres: bytes
    lists: bytes


_FORM = "foldin-index-1"


def index_to_bytes(index: Index) -> bytes:
    """`index` as bytes, little endian."""
    centres = np.asarray(index.centres, dtype="<f4")
    lists = np.asarray(index.lists, dtype="<u2")
    return msgspec.msgpack.encode(
        _Bytes(_FORM, centres.shape[1], index.probes, index.recall, centres.tobytes(), lists.tobytes())
    )


def index_from_bytes(payload: bytes, model: Model, n_items: int) -> Index:
    """The index of a table of `n_items` rows. Raises `ModelUnreadable` where it is none."""
    try:
        read = msgspec.msgpack.decode(payload, type=_Bytes)
    except msgspec.MsgspecError as exc:
        raise ModelUnreadable(f"not an index: {exc}") from exc
    dim = item_layout(model).dim
    if (
        read.form != _FORM
        or read.dim != dim
        or len(read.centres) % (4 * dim)
        or len(read.lists) != 2 * n_items
    ):
        raise ModelUnreadable(
            f"an index {read.form!r} that does not fit {n_items} items of rank {model.rank}"
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
    least_items: int = LEAST_ITEMS,
) -> Index | None:
    """An index of `items` (n, item_width) for such `users` (u, user_width), or None where it would not pay.

    None for fewer than `least_items` items, for no users, and where so many lists would have to be looked
    into that the exact product is as fast. About 20 s of one core for a million items of rank 50.
    """
    if len(items) < least_items or len(users) == 0:
        return None
    points = np.ascontiguousarray(items[:, item_layout(model).mean], dtype=np.float32)
    chosen = rng.choice(len(users), min(_QUERIES, len(users)), replace=False)
    queries = query_features(model, users[np.sort(chosen)])
    count = min(max(2, 2 * math.isqrt(len(points))), np.iinfo(np.uint16).max)
    centres = _centres(points, count, rng)
    lists = _nearest(points, centres).astype(np.uint16)
    needed = _lists_needed(points, centres, lists, queries)
    learn, check = needed[::2], needed[1::2] if len(needed) > 1 else needed
    found = np.array([np.mean(learn <= probes) for probes in range(1, count + 1)])
    probes = int(np.argmax(found >= _AIM)) + 1
    recall = float(np.mean(check <= probes))
    if probes > _LARGEST_SHARE * count or recall < _WANTED:
        return None
    return Index(centres, lists, probes, recall)


def query_features(model: Model, users: FloatTable) -> Float32s:
    """`[latent, 1]` of users (u, user_width), float32 (u, dim): times an item's mean it ranks that user's
    items.
    """
    features = users[:, user_layout(model).mean].astype(np.float32)
    features[:, -1] = 1.0
    return features


def _centres(points: Float32s, count: int, rng: np.random.Generator) -> Float32s:
    """Lloyd's algorithm on a sample; a list that loses all its points begins anew at a random one."""
    size = min(len(points), _POINTS_PER_LIST * count)
    sample = points[np.sort(rng.choice(len(points), size, replace=False))]
    centres = sample[rng.choice(size, count, replace=False)].copy()
    for _ in range(_ROUNDS):
        nearest = _nearest(sample, centres)
        order = np.argsort(nearest, kind="stable")
        held, starts = np.unique(nearest[order], return_index=True)
        sums = np.add.reduceat(sample[order], starts, axis=0)
        sizes = np.diff(np.append(starts, size))
        centres = sample[rng.choice(size, count, replace=False)].copy()
        centres[held] = sums / sizes[:, None]
    return centres


def _nearest(points: Float32s, centres: Float32s) -> Int64s:
    half = 0.5 * np.einsum("ij,ij->i", centres, centres)
    nearest = np.empty(len(points), dtype=np.int64)
    for start in range(0, len(points), _BLOCK):
        part = points[start : start + _BLOCK] @ centres.T
        part -= half
        nearest[start : start + _BLOCK] = part.argmax(axis=1)
    return nearest


def _lists_needed(points: Float32s, centres: Float32s, lists: Lists, queries: Float32s) -> Int64s:
    """How many lists a search must look into to find each of the exact top 10 of each query: (queries,
    10).
    """
    top = min(TOP, len(points))
    scores = np.full((len(queries), 0), 0.0, dtype=np.float32)
    rows = np.zeros((len(queries), 0), dtype=np.int64)
    for start in range(0, len(points), _BLOCK):
        part = queries @ points[start : start + _BLOCK].T
        best = np.argpartition(-part, min(top, part.shape[1]) - 1, axis=1)[:, :top]
        scores = np.concatenate([scores, np.take_along_axis(part, best, axis=1)], axis=1)
        rows = np.concatenate([rows, best + start], axis=1)
        kept = np.argsort(-scores, axis=1)[:, :top]
        scores, rows = np.take_along_axis(scores, kept, axis=1), np.take_along_axis(rows, kept, axis=1)
    places = np.empty((len(queries), len(centres)), dtype=np.int64)
    ranked = np.argsort(-(queries @ centres.T), axis=1)
    np.put_along_axis(
        places, ranked, np.arange(1, len(centres) + 1)[None].repeat(len(queries), axis=0), axis=1
    )
    return np.take_along_axis(places, lists[rows].astype(np.int64), axis=1)
