"""A `Model` as bytes and back. Invariant: what `from_bytes` returns is a model that every kernel can use.

A msgpack map that names its format; arrays are little-endian float64 with their shape. Nothing is executed on
reading.
"""

import msgspec
import numpy as np

from factors.errors import FitRefused, ModelUnreadable
from factors.model.layout import MAX_RANK
from factors.model.parameters import from_model
from factors.model.scale import check_scale
from factors.model.types import Float64s, Link, Model, Scale

_FORMAT = "foldin-model-1"


class _Array(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    shape: tuple[int, ...]
    data: bytes


class _Bytes(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: str
    rank: int
    link: Link
    low: float
    high: float
    step: float | None
    user_width: int
    item_width: int
    parameters: dict[str, _Array]


def to_bytes(model: Model) -> bytes:
    """Return `model` as bytes; the same bytes for the same model."""
    arrays = {
        name: _Array(array.shape, array.astype("<f8").tobytes())
        for name, array in sorted(model.parameters.items())
    }
    scale = model.scale
    return msgspec.msgpack.encode(
        _Bytes(
            _FORMAT,
            model.rank,
            model.link,
            float(scale.low),
            float(scale.high),
            None if scale.step is None else float(scale.step),
            model.user_width,
            model.item_width,
            arrays,
        )
    )


def from_bytes(payload: bytes) -> Model:
    """Return the model that `to_bytes` wrote. Raises `ModelUnreadable` for anything else."""
    try:
        read = msgspec.msgpack.decode(payload, type=_Bytes)
    except msgspec.MsgspecError as exc:
        raise ModelUnreadable(f"not a model: {exc}") from exc
    if read.format != _FORMAT:
        raise ModelUnreadable(f"a model of format {read.format!r}, this version reads {_FORMAT!r}")
    if not 1 <= read.rank <= MAX_RANK:
        raise ModelUnreadable(f"a model of rank {read.rank}")
    scale = Scale(read.low, read.high, read.step)
    try:
        check_scale(scale)
    except FitRefused as exc:
        raise ModelUnreadable(str(exc)) from exc
    parameters = {name: _array(name, array) for name, array in read.parameters.items()}
    model = Model(read.rank, read.link, scale, read.user_width, read.item_width, parameters)
    # It checks names and shapes.
    from_model(model)
    return model


def _array(name: str, array: _Array) -> Float64s:
    size = 1
    for length in array.shape:
        size *= length
    # Every parameter is a number, a vector or a matrix.
    if len(array.shape) > 2 or min(array.shape, default=0) < 0 or size * 8 != len(array.data):
        raise ModelUnreadable(
            f"parameter {name!r}: {len(array.data)} bytes do not have the shape {array.shape}"
        )
    values = np.frombuffer(array.data, dtype="<f8").astype(np.float64).reshape(array.shape)
    if not np.isfinite(values).all():
        raise ModelUnreadable(f"parameter {name!r} is not finite")
    return values
