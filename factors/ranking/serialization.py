"""A ranking head as bytes and back, without a copy. Invariant: what is read can be folded in with.

`foldin-ranking-1`, a line feed, the length of the header (uint32), the header (a msgpack map), and the
arrays, little-endian, each beginning at a multiple of 64 bytes. Nothing is executed on reading.
"""

import struct
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from factors.errors import ModelUnreadable
from factors.model.layout import MAX_RANK
from factors.ranking.head import RankingHead
from factors.ranking.neighbours import Neighbours
from factors.ranking.parameters import RankingParameters
from factors.ranking.type_weights import TYPE_CODES, TypeWeight

_FORMAT = "foldin-ranking-1"
_LINE = f"{_FORMAT}\n".encode()
_LENGTH = struct.Struct("<I")
# A line of the processor's cache: mapped arrays are aligned for every vector instruction.
_ALIGNED = 64


class _Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    rank: int
    n_items: int
    n_neighbours: int
    numbers: dict[str, float]
    # Only of a head that has learned events of other types than ratings.
    types: tuple[TypeWeight, ...] = ()


def head_to_bytes(head: RankingHead) -> bytes:
    """Return `head` as bytes; the same bytes for the same head."""
    neighbours = head.neighbours
    parameters = {field.name: getattr(head.parameters, field.name) for field in fields(head.parameters)}
    numbers = {name: float(value) for name, value in parameters.items() if np.ndim(value) == 0}
    rank, n_items = head.parameters.rank, len(head.items)
    header = _Header(rank, n_items, len(neighbours.item_row), numbers, head.parameters.types)
    encoded = msgspec.msgpack.encode(header)
    tables = {
        "items": head.items,
        "indptr": neighbours.indptr,
        "item_row": neighbours.item_row,
        "weight": neighbours.weight,
    }
    content = bytearray(_LINE + _LENGTH.pack(len(encoded)) + encoded)
    for name, (dtype, _) in _arrays(header).items():
        content += bytes(-len(content) % _ALIGNED)
        # By name: the order of the header is the order of the bytes.
        array = np.asarray(tables[name] if name in tables else parameters[name], dtype=dtype)
        content += array.tobytes()
    return bytes(content)


def head_from_bytes(buffer: bytes | memoryview, n_items: int) -> RankingHead:
    """Return the head of `n_items` items that `head_to_bytes` wrote; its tables are views of `buffer`,
    or copies where they would not be aligned.

    Raises `ModelUnreadable` for anything else, every number being looked at.
    """
    view = memoryview(buffer).cast("B")
    header, start = _read_header(view)
    if not 1 <= header.rank <= MAX_RANK or header.n_items != n_items or header.n_neighbours < 0:
        raise ModelUnreadable(
            f"a ranking head of rank {header.rank} and {header.n_items} items, for {n_items} items"
        )
    arrays: dict[str, npt.NDArray[Any]] = {}
    for name, (dtype, shape) in _arrays(header).items():
        start += -start % _ALIGNED
        size = int(np.prod(shape))
        if start + size * dtype.itemsize > len(view):
            raise ModelUnreadable("a ranking head that is cut off")
        array = np.frombuffer(view, dtype, size, start) if size else np.zeros(size, dtype)
        # Where the buffer begins at no multiple of an array's numbers, compiled loops need a copy.
        arrays[name] = np.require(array.reshape(shape), requirements="A")
        start += size * dtype.itemsize
    if start != len(view):
        raise ModelUnreadable("a ranking head with bytes behind its end")
    neighbours = Neighbours(arrays.pop("indptr"), arrays.pop("item_row"), arrays.pop("weight"))
    items = arrays.pop("items")
    values: dict[str, Any] = {**header.numbers, **arrays, "types": header.types}
    try:
        parameters = RankingParameters(**values)
    except TypeError as exc:
        raise ModelUnreadable("a ranking head with other parameters") from exc
    parameters.check()
    if not all(
        0 < each.code < TYPE_CODES and 0 <= (each.weight or 0) < np.inf and each.decided >= 0
        for each in header.types
    ):
        raise ModelUnreadable("a ranking head with other event types")
    _check_tables(items, neighbours)
    return RankingHead(parameters, items, neighbours)


def _read_header(view: memoryview) -> tuple[_Header, int]:
    """Return the header and where the arrays begin."""
    start = len(_LINE) + _LENGTH.size
    if view[: len(_LINE)] != _LINE or len(view) < start:
        raise ModelUnreadable(f"not a ranking head of format {_FORMAT!r}")
    (length,) = _LENGTH.unpack_from(view, len(_LINE))
    try:
        return msgspec.msgpack.decode(view[start : start + length], type=_Header), start + length
    except msgspec.MsgspecError as exc:
        raise ModelUnreadable(f"not a ranking head: {exc}") from exc


def _arrays(header: _Header) -> Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]]:
    """Return type and shape of each array, in the order in which they are written."""
    rank, n_items, entries = header.rank, header.n_items, header.n_neighbours
    return {
        "user_mean": (np.dtype("<f8"), (rank,)),
        "user_gram": (np.dtype("<f8"), (rank, rank)),
        "item_gram": (np.dtype("<f8"), (rank, rank)),
        "items": (np.dtype("<f4"), (n_items, rank)),
        "indptr": (np.dtype("<i8"), (n_items + 1,)),
        "item_row": (np.dtype("<i4"), (entries,)),
        "weight": (np.dtype("<f4"), (entries,)),
    }


def _check_tables(items: npt.NDArray[np.float32], neighbours: Neighbours) -> None:
    if not np.isfinite(items).all() or not np.isfinite(neighbours.weight).all():
        raise ModelUnreadable("a ranking head that is not finite")
    indptr, rows = neighbours.indptr, neighbours.item_row
    if indptr[0] != 0 or indptr[-1] != len(rows) or (np.diff(indptr) < 0).any():
        raise ModelUnreadable("a ranking head whose neighbours do not lie in rows")
    if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < len(items):
        raise ModelUnreadable("a ranking head with neighbours that are no items")
