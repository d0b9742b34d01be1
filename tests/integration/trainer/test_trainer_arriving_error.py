"""How well the live generation and the one before predict the ratings that arrive, as a metric says it."""

import asyncio
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featurestore.ratings.log import NewRating
from featurestore.settings import StoreSettings
from featurestore.store import Store
from tests.support.factories import low_rank_ratings
from tests.support.trainers import fitted, running_trainer, trainer_settings, until_drained
from tests.support.waiting import some, wait_until_async
from trainer.app import Trainer
from trainer.fit_job.job import FitRequest
from trainer.fit_job.process import fit_in_process
from trainer.fit_job.result_files import read_result
from trainer.fit_job.results import FitResult
from trainer.gate import Policy
from trainer.health.metrics import of_term

# Whatever it is like, it goes live.
NO_GATE = Policy(baseline=float("inf"), live=float("inf"))


async def predicted(trainer: Trainer, store: Store, given: list[NewRating]) -> dict[str, float]:
    """Bring ratings, the same once more where they are not enough, until over 100 were predicted."""
    parts = cycle([given[start : start + 60] for start in range(0, len(given), 60)])

    sent = 0

    async def enough() -> bool:
        nonlocal sent
        part = next(parts)
        sent += len(part)
        await store.ratings.append(part)
        await until_drained(store)
        return measured(trainer).get("ratings", 0.0) > 100

    async def all_taken() -> bool:
        before = measured(trainer)
        await asyncio.sleep(0.2)
        arriving = trainer.term.arriving if trainer.term else None
        return arriving is not None and arriving.arrivals.empty() and measured(trainer) == before

    await wait_until_async(enough, "ratings are predicted")
    await wait_until_async(all_taken, "no more are being predicted")
    assert measured(trainer)["ratings"] <= sent
    return measured(trainer)


def measured(trainer: Trainer) -> dict[str, float]:
    """The samples of the metric, by `which`, and of how many ratings they are."""
    assert trainer.term is not None
    samples = [sample for metric in of_term(trainer.term) for sample in metric.samples]
    return {
        each.labels.get("which", "ratings"): each.value
        for each in samples
        if each.name.startswith("foldin_trainer_arriving_")
    }


async def test_a_live_generation_that_is_worse_is_told_from_the_one_before(
    store: Store, store_settings: StoreSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def mixed_up(request: FitRequest, *files: Any, **more: Any) -> FitResult:
        result = await fit_in_process(request, *files, **more)
        items = np.load(result.path / "items.npy")
        np.save(result.path / "items.npy", items[::-1])
        return read_result(result.path)

    settings = trainer_settings(store_settings, tmp_path / "archive", gate=NO_GATE)
    async with running_trainer(settings) as trainer:
        every = low_rank_ratings(users=120, items=20)
        await store.ratings.append(every[::2])
        good = await fitted(store)
        # There is none before it, so nothing is measured.
        await store.ratings.append(every[1:60:2])
        await until_drained(store)
        assert measured(trainer) == {}
        with monkeypatch.context() as patch:
            patch.setattr("trainer.refit.fit_in_process", mixed_up)
            bad = await fitted(store)
        # What the second has learned does not count, be it seen after the flip only.
        assert measured(trainer).get("ratings", 0.0) == 0.0
        found = await predicted(trainer, store, every[61:361:2])
        assert found["live"] > 1.5 * found["previous"]
        # Nothing happens by itself; a person goes back, and the two change places.
        assert (await store.generations.live()).generation == bad
        await store.generations.activate(good, hold=True)
        term = some(trainer.term)
        await wait_until_async(
            lambda: term.switch.live is not None and term.switch.live.generation == good, "the way back"
        )
        assert measured(trainer) == {}
        found = await predicted(trainer, store, every[361:661:2])
        assert found["previous"] > 1.5 * found["live"]
