"""The ranking head of a fit, beside the files of its ratings. Invariant: whatever goes wrong with it, the
ratings' result stays as it is.
"""

import contextlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from factors import (
    Columns,
    Factorize,
    FactorsError,
    FitRefused,
    RankingFit,
    TypeWeight,
    fit_ranking,
    head_from_bytes,
)
from trainer import log
from trainer.engines import EngineName, head_sweeps
from trainer.fit_job.ratings import FitInput
from trainer.fit_job.result_files import read_columns, write_head
from trainer.fit_job.results import FitResult


def engine_has_head(engine: EngineName, *, events: bool = False) -> bool:
    """Say whether fits of this engine have a ranking head beside them; others rank by what they fit.
    `events`: whether there are any that are no ratings.
    """
    # Ratings alone the engine `implicit` ranks by itself.
    return engine == "variational" or (engine == "implicit" and events)


def add_head(
    path: Path,
    data: FitInput,
    live: FitResult | None,
    *,
    rng: np.random.Generator,
    threads: int,
    types: Sequence[TypeWeight],
    engine: EngineName,
) -> None:
    """Fit the ranking head of these ratings and other events, which count as `types` say, and of the
    attributes in the result `path`, begun from that of the `live` fit, and add it to the result. The `engine`
    may have sweeps of its own. Where that fails, the log says why, and lists go by expected rating until the
    next fit.
    """
    try:
        head = _fitted_head(
            *(data, live, rng, threads),
            types=types,
            attributes=read_columns(path),
            factorize=head_sweeps(engine, threads, rng),
        )
        if "ranking_kept" in head.metrics:
            log.warning("ranking_choices_kept", why="others find the newest events no better")
        write_head(path, head)
    except FitRefused:
        # No rating is left.
        return
    except (ArithmeticError, LookupError, MemoryError, OSError, RuntimeError, ValueError):
        if not path.exists():
            # The trainer that wanted it was replaced, and the folder with it.
            return
        log.LOGGER.exception("%s", log.line("ranking_fit_failed", {}))


def _fitted_head(
    data: FitInput,
    live: FitResult | None,
    rng: np.random.Generator,
    threads: int,
    *,
    types: Sequence[TypeWeight],
    attributes: Columns | None,
    factorize: Factorize | None,
) -> RankingFit:
    start = None
    # The heads of an engine with sweeps of its own leave expected ratings out of lists.
    alike = live is not None and (live.model.feedback == "implicit") == (factorize is not None)
    if live is not None and live.ranking is not None and alike:
        # One that is damaged or of another version: this fit chooses for itself.
        with contextlib.suppress(FactorsError):
            start = head_from_bytes(live.ranking.data, len(live.items))
    return fit_ranking(
        *(data.ratings, data.n_users, data.n_items),
        rng=rng,
        threads=threads,
        start=start,
        choices=data.choices,
        types=types,
        attributes=attributes,
        factorize=factorize,
        unlearned=(data.unlearned if data.choices is None else data.new_choices).astype(np.int64),
    )
