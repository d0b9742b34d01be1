"""One fit, as the helper process `python -m trainer.fit_job.job`. Invariant: it ends with its parent,
whatever it is doing.

In: a `FitRequest`. Out: any number of `Progress`, then `Done` or `Failed`.
"""

import contextlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
import pyarrow as pa
from threadpoolctl import threadpool_limits

from factors import (
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
from featurestore.generations.manifest import HEAD_WAITS
from processes.memory import give_back_freed, give_back_now
from processes.messages import Parent
from processes.priority import step_back
from trainer.archive.item_list import read_items
from trainer.catalogue.reading import read_catalogue, read_user_attributes
from trainer.engines import EngineName, make_engine
from trainer.engines.base import FitTask, Report
from trainer.errors import (
    ArchiveFailedError,
    ArchiveRefusedError,
    FitFailedError,
    NothingNewError,
    SegmentDamagedError,
    SegmentUnreadError,
)
from trainer.fit_job.compiling import NICENESS, compile_apart
from trainer.fit_job.mapped_columns import in_file
from trainer.fit_job.ranking import add_head, engine_has_head
from trainer.fit_job.ratings import FitInput, load_ratings
from trainer.fit_job.result_files import read_result, take_name, unnamed, write_result
from trainer.fit_job.results import Described, FitResult
from trainer.fit_job.trial import try_out

# Of fewer ratings the head takes two seconds, and goes live with their fit.
HEAD_AT_ONCE = 20_000

# What is less is had and freed thousands of times: mapped anew each time it cost a fault for each 4 KB. Of a
# million ratings a fit took a third longer with pieces of 1 MB, and 3 % less memory.
_LARGE = 1 << 24

# So few new ratings, a part of all, move little of what is settled: each refit sweeps on from the one before.
# The first sweep takes the new ratings in, the next what follows for all others: of the fewest, that with the
# ratings that the trial held out.
_FEW_NEW, _FEWEST_NEW = 0.05, 0.01
_SWEEPS_OF_FEW = 2

# What may come of a fit without a mistake in it.
_EXPECTED = (
    *(SegmentDamagedError, ArchiveFailedError, ArchiveRefusedError),
    *(FactorsError, MemoryError, OSError),
)

Phase = Literal["archiving", "loading", "trial", "fitting", "ranking", "publishing"]
FailureKind = Literal["damaged", "refused", "diverged", "memory", "disk"]


@dataclass(frozen=True, slots=True)
class FitRequest:
    """What to fit and where to leave it. `items`: the file of the registry's item ids; `live`: the folder of
    the live generation's fit, to be compared with, and to start from unless `from_scratch`; `descriptors`:
    the open files of `paths`, which may have no name any more; `types`: what events that are no ratings count
    in a ranking head. `catalogue`: the file of its items, of this `catalogue_version`; None where attributes
    are not to be learned. `user_attributes`: the open file of those of users, which were read at
    `users_read_ms`; None where there are none. `context_kinds`: of the fields of contexts,
    None of one that was deleted.
    `head_may_wait`: no generation is live that has learned any rating. `unless_same`: fit nothing where the
    live fit has learned all that there is.
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
    context_kinds: tuple[ContextKind | None, ...] = ()
    head_may_wait: bool = False
    unless_same: bool = False


class FitProgress:
    """How far a fit has come: its `phase`, and how many sweeps of that have ended; and what each phase took.
    One ends when the next one begins, in the order of `Phase`.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since = clock()
        self.phase: Phase = "archiving"
        self.sweep = 0
        self._seconds: dict[Phase, float] = {}

    def begin(self, phase: Phase) -> None:
        """Take note of the beginning of a phase."""
        now = self._clock()
        self._seconds[self.phase] = self._seconds.get(self.phase, 0.0) + now - self._since
        self.phase, self.sweep, self._since = phase, 0, now

    def seconds(self) -> dict[str, float]:
        """Return what each phase before this one took, and this one so far, as `NAME_s`."""
        now = self._clock()
        known = {**self._seconds, self.phase: self._seconds.get(self.phase, 0.0) + now - self._since}
        return {f"{phase}_s": seconds for phase, seconds in known.items()}


class Began(msgspec.Struct, frozen=True, tag=True):
    """A phase of the fit has begun."""

    phase: Phase


class Progress(msgspec.Struct, frozen=True, tag=True):
    """Figures of a sweep that has ended."""

    metrics: dict[str, float]


class Done(msgspec.Struct, frozen=True, tag=True):
    """The result lies where the request said. `peak_bytes`: the most memory that this process had; 0 where
    the system does not tell. `cpu_s`: what it used of the cores; `phases_cpu_s`: in each phase, as `NAME_s`.
    """

    peak_bytes: int = 0
    cpu_s: float = 0.0
    phases_cpu_s: dict[str, float] = {}


class NothingNew(msgspec.Struct, frozen=True, tag=True):
    """There is no result: the live fit has learned it all."""


class Failed(msgspec.Struct, frozen=True, tag=True):
    """There is no result. `path`: the segment that is damaged."""

    kind: FailureKind
    why: str
    path: str | None = None


Answer = Began | Progress | Done | NothingNew | Failed


def run_fit(request: FitRequest, report: Report, begin: Callable[[Phase], None]) -> None:
    """Load the ratings, measure a trial fit on a part of them, fit all, write the result; then fit the
    ranking head, and add it. A process that is killed at that leaves the ratings' result to `take_name`.
    Where no generation is live that has learned anything, of many ratings that result is all: predictions
    need not wait for lists, and the next fit, which goes on from this one, has the head. `begin` is called
    with each phase.

    Raises `SegmentDamagedError`, `ArchiveFailedError`, `ArchiveRefusedError`, `NothingNewError`,
    `FactorsError`, `OSError`, `MemoryError`.
    """
    output, rng = Path(request.output), np.random.default_rng(request.seed)
    data, live, head = _fit_ratings(request, rng, report, begin)
    if head == "now":
        start = None if request.from_scratch else live
        begin("ranking")
        give_back_now()
        add_head(
            *(unnamed(output), data, start),
            rng=rng,
            threads=request.threads,
            types=request.types,
            engine=request.engine,
        )
    take_name(output)


def _fit_ratings(
    request: FitRequest, rng: np.random.Generator, report: Report, begin: Callable[[Phase], None]
) -> tuple[FitInput, FitResult | None, Literal["none", "now", "later"]]:
    """Fit the ratings and write the result; return what was learned from, the live fit, and when the ranking
    head is fitted. All else that took memory is free again.
    """
    begin("loading")
    live = None
    if request.live is not None:
        # Without its files the fit starts from nothing: slower, not wrong.
        with contextlib.suppress(ArchiveFailedError, FitFailedError):
            live = read_result(Path(request.live))
    known_ids, learned = (None, None) if live is None else (live.user_id_array(), np.asarray(live.user_n))
    item_ids = read_items(Path(request.items))
    opened = [pa.PythonFile(os.fdopen(descriptor, "rb")) for descriptor in request.descriptors]
    segments = list(zip(map(Path, request.paths), opened, strict=True))
    data = load_ratings(segments, item_ids, known_ids, learned, threads=request.threads)
    if request.unless_same and live is not None and has_learned(live, data, request):
        raise NothingNewError
    # Decided once, so that the trial is of what goes live; and what no fit reads is not carried along.
    data = replace(data, ratings=of_fields(data.ratings, request.context_kinds))
    data, has_read = in_file(data, Path(request.output).parent)
    give_back_now()
    head: Literal["none", "now", "later"] = "none"
    if engine_has_head(request.engine, events=data.choices is not None):
        # The head learns from these, the ratings among them.
        every = data.ratings if data.choices is None else data.choices
        compile_apart(max(len(data.ratings.value), len(every.value)))
        waits = request.head_may_wait and len(data.ratings.value) >= HEAD_AT_ONCE
        head = "later" if waits else "now"
    settings = FitSettings(Scale(request.low, request.high, request.step), threads=request.threads)
    engine = make_engine(request.engine, settings)
    given = read_attributes(request, item_ids, data.user_ids)
    described = describe(given)
    columns = {name: each.columns for name, each in described.items()}
    task = FitTask(
        *(data.ratings, data.n_users, data.n_items, rng),
        report=report,
        attributes=columns,
        # Of one that was deleted there are no values, of any kind.
        context_kinds=tuple(each or "number" for each in request.context_kinds),
        has_read=has_read,
    )
    before: dict[SideName, Columns] = {}
    if live is not None:
        if not request.from_scratch:
            users = np.asarray(live.users)[data.kept]
            # What was taken back has to be unlearned, too.
            gone = live.n_ratings - (len(data.ratings.value) - len(data.unlearned))
            changed = (len(data.unlearned) + max(gone, 0)) / max(1, len(data.ratings.value))
            sweeps = _SWEEPS_OF_FEW - (changed <= _FEWEST_NEW)
            task = replace(task, continuation=sweeps if changed <= _FEW_NEW else None)
            task = replace(task, start=Fitted(live.model, users, np.asarray(live.items)[: data.n_items]))
        before = {name: each.encoding.encode(*given[name]) for name, each in live.known_attributes().items()}
    begin("trial")
    trial, metrics = try_out(engine, task, data, live, before, threads=request.threads)
    begin("fitting")
    give_back_now()
    fitted = engine.fit(task) if trial is None else trial.complete()
    del trial
    finite = {name: float(value) for name, value in fitted.metrics.items() if np.isfinite(value)}
    if data.unknown:
        metrics["unknown_items"] = float(data.unknown)
    if head == "later":
        metrics[HEAD_WAITS] = 1.0
    write_result(
        *(unnamed(Path(request.output)), data, fitted, {**finite, **metrics}, described),
        catalogue=None if request.catalogue is None else request.catalogue_version,
        users_read_ms=request.users_read_ms,
    )
    return data, live, head


def has_learned(live: FitResult, data: FitInput, request: FitRequest) -> bool:
    """Return whether the live fit has learned all that there is, as after a file was imported again. Other
    events than ratings and the attributes of users are not compared, and count as new.
    """
    return (
        not data.has_news
        and data.choices is None
        and request.user_attributes is None
        and live.n_ratings == len(data.ratings.value)
        and (live.catalogue or "") == request.catalogue_version
    )


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


def of_fields(ratings: Ratings, kinds: Sequence[ContextKind | None]) -> Ratings:
    """Return ratings whose contexts have fields of these kinds: some may be given in no rating, and what a
    store that was put back from an older copy does not know any more is left out. A field without a kind
    counts as not given.
    """
    if ratings.context is None or not kinds:
        return replace(ratings, context=None)
    context = ratings.context[:, : len(kinds)]
    missing = np.full((len(context), len(kinds) - context.shape[1]), np.nan, dtype=np.float32)
    found = np.hstack([context, missing])
    found[:, [kind is None for kind in kinds]] = np.nan
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
    step_back(NICENESS)
    # Arrow's own allocators keep what was freed, and so does the system's: of many ratings as much as the fit
    # takes.
    pa.set_memory_pool(pa.system_memory_pool())
    give_back_freed(_LARGE)

    answer = answer_of(request, lambda answer: parent.send(msgspec.msgpack.encode(answer)))
    parent.send(msgspec.msgpack.encode(answer))
    return int(isinstance(answer, Failed))


def answer_of(request: FitRequest, tell: Callable[[Answer], None]) -> Answer:
    """Fit; return the last answer. `tell` is called with those before it."""
    used = FitProgress(time.process_time)

    def begin(phase: Phase) -> None:
        used.begin(phase)
        tell(Began(phase))

    try:
        # Loops divide their rows among threads themselves, and what BLAS gives depends on how many it has.
        with threadpool_limits(limits={"blas": 1, "openmp": request.threads}):
            run_fit(request, lambda metrics: tell(Progress(metrics)), begin)
    except NothingNewError:
        return NothingNew()
    except _EXPECTED as exc:
        path = str(exc.path) if isinstance(exc, SegmentDamagedError | SegmentUnreadError) else None
        return Failed(_kind(exc), str(exc) or type(exc).__name__, path)
    return Done(peak_bytes(), time.process_time(), used.seconds())


def peak_bytes() -> int:
    """Return the most memory that this process had; 0 where the system does not tell."""
    # Not `ru_maxrss`, which counts what the parent had when it forked.
    try:
        lines = Path("/proc/self/status").read_text("ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)


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
