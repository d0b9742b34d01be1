"""One fit, as the helper process `python -m trainer.fit_job.job`. Invariant: it ends with its parent,
whatever it is doing.

In: a `FitRequest`. Out: any number of `Progress`, then `Done` or `Failed`.
"""

import contextlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
import pyarrow as pa
from threadpoolctl import threadpool_limits

from factors import (
    MANY_RATINGS,
    Attribute,
    Columns,
    ContextKind,
    FactorsError,
    FitDiverged,
    FitSettings,
    Fitted,
    Ratings,
    Scale,
    SideName,
    TypeWeight,
    learn_encoding,
)
from featurestore.catalogue.columns import attributes_of
from processes.messages import Parent
from trainer.archive.item_list import read_items
from trainer.catalogue.reading import read_catalogue
from trainer.catalogue.users import read_user_attributes
from trainer.engines import EngineName, make_engine
from trainer.engines.base import FitTask, Report
from trainer.errors import (
    ArchiveFailedError,
    ArchiveRefusedError,
    FitFailedError,
    SegmentDamagedError,
)
from trainer.fit_job.ranking import add_head, engine_has_head
from trainer.fit_job.ratings import FitInput, load_ratings
from trainer.fit_job.result_files import read_result, take_name, unnamed, write_result
from trainer.fit_job.results import Described, FitResult
from trainer.fit_job.trial import try_out

# Workers that answer users on the same cores go first, but POST /train has a minute: no idle priority.
_NICENESS = 5

# What may come of a fit without a mistake in it.
_EXPECTED = (
    *(SegmentDamagedError, ArchiveFailedError, ArchiveRefusedError),
    *(FactorsError, MemoryError, OSError),
)

FailureKind = Literal["damaged", "refused", "diverged", "memory", "disk"]


@dataclass(frozen=True, slots=True)
class FitRequest:
    """What to fit and where to leave it. `items`: the file of the registry's item ids; `live`: the folder of
    the live generation's fit, to be compared with, and to start from unless `from_scratch`; `descriptors`:
    the open files of `paths`, which may have no name any more; `types`: what events that are no ratings count
    in a ranking head. `catalogue`: the file of its items, of this `catalogue_version`; None where attributes
    are not to be learned. `user_attributes`: the open file of those of users, which were read at
    `users_read_ms`; None where there are none. `context_kinds`: of the fields of contexts;
    `context_retired`: the places of fields, and of categories with their code, that are not learned.
    """

    paths: tuple[str, ...]
    items: str
    output: str
    engine: EngineName
    low: float
    high: float
    step: float | None
    threads: int
    seed: int
    live: str | None = None
    from_scratch: bool = False
    descriptors: tuple[int, ...] = ()
    types: tuple[TypeWeight, ...] = ()
    catalogue: str | None = None
    catalogue_version: str = ""
    user_attributes: int | None = None
    users_read_ms: int = 0
    context_kinds: tuple[ContextKind, ...] = ()
    context_retired: tuple[tuple[int, int | None], ...] = ()


class Progress(msgspec.Struct, frozen=True, tag=True):
    """Figures of a sweep that has ended."""

    metrics: dict[str, float]


class Done(msgspec.Struct, frozen=True, tag=True):
    """The result lies where the request said."""


class Failed(msgspec.Struct, frozen=True, tag=True):
    """There is no result. `path`: the segment that is damaged."""

    kind: FailureKind
    why: str
    path: str | None = None


Answer = Progress | Done | Failed


def run_fit(request: FitRequest, report: Report) -> None:
    """Load the ratings, measure a trial fit on a part of them, fit all, write the result; then fit the
    ranking head, and add it. A process that is killed at that leaves the ratings' result to `take_name`.

    Raises `SegmentDamagedError`, `ArchiveFailedError`, `ArchiveRefusedError`, `FactorsError`, `OSError`,
    `MemoryError`.
    """
    output, rng = Path(request.output), np.random.default_rng(request.seed)
    data, live = _fit_ratings(request, rng, report)
    if engine_has_head(request.engine):
        start = None if request.from_scratch else live
        threads, types = request.threads, request.types
        add_head(unnamed(output), data, start, rng=rng, threads=threads, types=types)
    take_name(output)


def _fit_ratings(
    request: FitRequest, rng: np.random.Generator, report: Report
) -> tuple[FitInput, FitResult | None]:
    """Fit the ratings and write the result; return what was learned from, and the live fit. All else that
    took memory is free again.
    """
    live = None
    if request.live is not None:
        # Without its files the fit starts from nothing: slower, not wrong.
        with contextlib.suppress(FitFailedError):
            live = read_result(Path(request.live))
    known_ids, learned = (None, None) if live is None else (live.user_id_array(), np.asarray(live.user_n))
    item_ids = read_items(Path(request.items))
    opened = [pa.PythonFile(os.fdopen(descriptor, "rb")) for descriptor in request.descriptors]
    segments = list(zip(map(Path, request.paths), opened, strict=True))
    data = load_ratings(segments, item_ids, known_ids, learned)
    # Decided once, so that the trial is of what goes live; and what no fit reads is not carried along.
    kinds = request.context_kinds if len(data.ratings.value) < MANY_RATINGS else ()
    data = replace(data, ratings=of_fields(data.ratings, len(kinds), request.context_retired))
    settings = FitSettings(Scale(request.low, request.high, request.step), threads=request.threads)
    engine = make_engine(request.engine, settings)
    given = read_attributes(request, item_ids, data.user_ids)
    described = describe(given)
    columns = {name: each.columns for name, each in described.items()}
    task = FitTask(
        *(data.ratings, data.n_users, data.n_items, rng),
        report=report,
        attributes=columns,
        context_kinds=kinds,
    )
    before: dict[SideName, Columns] = {}
    if live is not None:
        if not request.from_scratch:
            users = np.asarray(live.users)[data.kept]
            task = replace(task, start=Fitted(live.model, users, np.asarray(live.items)[: data.n_items]))
        before = {name: each.encoding.encode(*given[name]) for name, each in live.known_attributes().items()}
    trial, metrics = try_out(engine, task, data, live, before)
    fitted = engine.fit(task if trial is None else replace(task, start=trial))
    finite = {name: float(value) for name, value in fitted.metrics.items() if np.isfinite(value)}
    if data.unknown:
        metrics["unknown_items"] = float(data.unknown)
    write_result(
        *(unnamed(Path(request.output)), data, fitted, {**finite, **metrics}, described),
        catalogue=None if request.catalogue is None else request.catalogue_version,
        users_read_ms=request.users_read_ms,
    )
    return data, live


def read_attributes(
    request: FitRequest, item_ids: pa.StringArray, user_ids: pa.StringArray
) -> dict[SideName, tuple[list[Attribute], int]]:
    """Return what the catalogue says of the items, and what is said of the users, each with the number of
    rows; nothing where this engine learns nothing from it.
    """
    of_items: list[Attribute] = []
    of_users: list[Attribute] = []
    if engine_has_head(request.engine) and request.catalogue is not None:
        of_items = attributes_of(read_catalogue(Path(request.catalogue), item_ids))
    if engine_has_head(request.engine) and request.user_attributes is not None:
        of_users = read_user_attributes(request.user_attributes, user_ids)
    return {"item": (of_items, len(item_ids)), "user": (of_users, len(user_ids))}


def of_fields(ratings: Ratings, fields: int, retired: Sequence[tuple[int, int | None]] = ()) -> Ratings:
    """Return ratings whose contexts have so many fields: some may be given in no rating, and what a store
    that was put back from an older copy does not know any more is left out. What is retired counts as not
    given: the place of a field, or of one with the code of a category.
    """
    if ratings.context is None or not fields:
        return replace(ratings, context=None)
    context = ratings.context[:, :fields]
    missing = np.full((len(context), fields - context.shape[1]), np.nan, dtype=np.float32)
    found = np.hstack([context, missing])
    for place, code in retired:
        column = found[:, place]
        column[... if code is None else column == code] = np.nan
    return replace(ratings, context=found)


def describe(given: Mapping[SideName, tuple[Sequence[Attribute], int]]) -> dict[SideName, Described]:
    """Return the attributes of each side, encoded; of one of which they say nothing there are none."""
    encodings = {name: learn_encoding(*attributes) for name, attributes in given.items()}
    return {
        name: Described(encoding, encoding.encode(*given[name]))
        for name, encoding in encodings.items()
        if encoding.width
    }


def main() -> int:
    """Read the request, fit, answer. Return 0 when there is a result, 1 when the answer says why there is
    none.
    """
    parent = Parent()
    parent.end_with_it()
    request = msgspec.msgpack.decode(parent.request, type=FitRequest)
    os.nice(_NICENESS)
    try:
        with threadpool_limits(limits=request.threads):
            run_fit(request, lambda metrics: parent.send(msgspec.msgpack.encode(Progress(metrics))))
    except _EXPECTED as exc:
        path = str(exc.path) if isinstance(exc, SegmentDamagedError) else None
        parent.send(msgspec.msgpack.encode(Failed(_kind(exc), str(exc) or type(exc).__name__, path)))
        return 1
    parent.send(msgspec.msgpack.encode(Done()))
    return 0


def _kind(exc: Exception) -> FailureKind:
    kinds: tuple[tuple[type[Exception], FailureKind], ...] = (
        (SegmentDamagedError, "damaged"),
        (FitDiverged, "diverged"),
        (FactorsError, "refused"),
        (ArchiveRefusedError, "refused"),
        (MemoryError, "memory"),
    )
    return next((kind for type_, kind in kinds if isinstance(exc, type_)), "disk")


if __name__ == "__main__":
    # Not `sys.exit`: the thread that waits for the parent's end holds the standard input.
    os._exit(main())
