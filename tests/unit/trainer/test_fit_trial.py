"""The trial of a fit: which ratings it is held to, and that one which is worse on what comes is refused."""

import math
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from factors import Ratings
from tests.support.event_tables import append, free
from trainer import gate
from trainer.archive.epoch_archive import EpochArchive
from trainer.archive.events import string_array
from trainer.archive.item_list import write_items
from trainer.fit_job.job import FitRequest, run_fit
from trainer.fit_job.ratings import FitInput
from trainer.fit_job.result_files import read_result
from trainer.fit_job.results import FitResult
from trainer.fit_job.trial import newest
from trainer.gate import Policy

N_ITEMS = 40
Rated = Sequence[tuple[str, int, float]]


def honest(prefix: str, n_users: int, each: int, seed: int) -> Rated:
    """Ratings by users with a taste, round the middle of the scale."""
    rng, kind = np.random.default_rng(seed), np.random.default_rng(0).normal(size=N_ITEMS)
    return [
        (f"{prefix}{user}", int(item), float(np.clip(round(3 + taste * kind[item]), 1, 5)))
        for user, taste in enumerate(rng.normal(size=n_users))
        for item in rng.permutation(N_ITEMS)[:each]
    ]


def flood(n_users: int, each: int) -> Rated:
    """Accounts that give everything a 5."""
    rng = np.random.default_rng(7)
    items = [rng.permutation(N_ITEMS)[:each] for _ in range(n_users)]
    return [(f"bot{user}", int(item), 5.0) for user, of_user in enumerate(items) for item in of_user]


def archived(folder: Path, rated: Rated, before: Rated = ()) -> EpochArchive:
    """The ratings as one more segment, behind those `before`."""
    archive = EpochArchive(folder, 1, guard=free)
    counts = Counter(user for user, _, _ in before)
    n = []
    for user, _, _ in rated:
        counts[user] += 1
        n.append(counts[user])
    users, rows, values = zip(*rated, strict=True)
    ms = 1 + len(before) + np.arange(len(rated))
    append(archive, users, n, rows, values, stream_ms=ms)
    return archive


def fit_of(archive: EpochArchive, output: Path, live: Path | None = None) -> FitResult:
    paths = archive.snapshot().paths
    request = FitRequest(
        paths=tuple(map(str, paths)),
        # Closed by what reads them.
        descriptors=tuple(os.open(path, os.O_RDONLY) for path in paths),
        items=str(write_items(archive.directory, [b"i%d" % row for row in range(N_ITEMS)])),
        output=str(output),
        engine="variational",
        low=1.0,
        high=5.0,
        step=1.0,
        threads=1,
        seed=1,
        live=None if live is None else str(live),
    )
    run_fit(request, lambda _metrics: None)
    return read_result(output)


@pytest.mark.slow
def test_a_fit_that_is_worse_on_what_comes_is_refused(tmp_path: Path) -> None:
    """To honest users come accounts that give everything a 5, and then more honest users."""
    first, bots = honest("u", 150, 15, seed=1), flood(200, 15)
    live = fit_of(archived(tmp_path / "archive", first), tmp_path / "live")
    archived(tmp_path / "archive", bots, before=first)
    archive = archived(tmp_path / "archive", honest("new", 100, 4, seed=2), before=[*first, *bots])
    fit = fit_of(archive, tmp_path / "newest", live.path)
    why = gate.refusal(fit, N_ITEMS, Policy(baseline=math.inf))
    assert why is not None
    assert "newest ratings, which neither has learned" in why
    assert gate.refusal(fit, N_ITEMS, Policy()) is not None


def test_the_newest_are_not_learned_yet_and_of_no_account_more_than_its_share() -> None:
    user, item = np.divmod(np.arange(8_000), 80)
    ratings = Ratings(user.astype(np.int32), item.astype(np.int32), np.full(8_000, 3.0), np.full(8_000, 1e9))
    ids = string_array(b"u%d" % k for k in range(100))
    # The ratings of the last user came last.
    unlearned = np.concatenate(
        [np.random.default_rng(0).permutation(np.arange(4_000, 7_920)), np.arange(7_920, 8_000)]
    )
    data = FitInput(ids, np.full(100, 80), ratings, 80, np.arange(100), unlearned)
    chosen = newest(data, 400)
    assert len(np.unique(chosen)) == 400
    assert np.isin(chosen, unlearned[len(unlearned) // 2 :]).all()
    assert (chosen >= 7_920).sum() == 20 == np.bincount(ratings.user_row[chosen]).max()
    assert set(newest(data, 10**6)) == set(unlearned[len(unlearned) // 2 :])
    assert len(newest(replace(data, unlearned=unlearned[:0]), 400)) == 0
