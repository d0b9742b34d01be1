"""Where a fit of few ratings starts."""

import numpy as np
import pytest

from factors import posterior_of
from factors.inference.histories import compress_pairs
from factors.model.parameters import to_model
from factors.model.quantized_rows import item_codec
from factors.model.types import Float64s, Scale
from factors.serving.scoring import Scorer
from factors.training.initialization import best_start, evidence, flat_state, initial_state
from factors.training.settings import FitSettings
from factors.training.sweep import State
from factors.training.training_set import TrainingSet

STARS = Scale(1.0, 5.0, 1.0)
SHAPE = (60, 80)


def scores(rng: np.random.Generator, rank: int) -> Float64s:
    users, items = rng.normal(size=(SHAPE[0], rank)), rng.normal(size=(SHAPE[1], rank))
    return np.asarray(
        3.0 + rng.normal(size=(SHAPE[0], 1)) + 0.5 * rng.normal(size=SHAPE[1]) + users @ items.T
    )


def world(rank: int, n: int) -> tuple[TrainingSet, Float64s]:
    """`n` ratings, and all as they would be."""
    rng = np.random.default_rng(7)
    table = np.clip(np.rint(scores(rng, rank)), 1.0, 5.0)
    user, item = np.divmod(rng.permutation(table.size)[:n], SHAPE[1])
    ratings = compress_pairs(user, item, table[user, item], np.full(n, np.nan), SHAPE[0])
    return TrainingSet.of(ratings, SHAPE[1]), table


def squared_error(state: State, table: Float64s) -> float:
    user, item = np.divmod(np.arange(table.size), SHAPE[1])
    scorer = Scorer(
        posterior_of(to_model(state.parameters)), item_codec(state.parameters).encode(state.item_rows)
    )
    mean, _, _ = scorer.latent(state.user_rows, user, item, np.full(table.size, np.nan))
    return float(np.mean((np.clip(mean, 1.0, 5.0) - table.ravel()) ** 2))


def flat(training: TrainingSet, settings: FitSettings) -> State:
    state = flat_state(training, settings)
    for _ in range(10):
        state.sweep()
    return state


def test_few_ratings_show_the_dimensions_that_there_are() -> None:
    training, table = world(2, 1_400)
    start = best_start(training, FitSettings(STARS), np.random.default_rng(1))
    alone = flat(training, FitSettings(STARS))
    assert start.parameters.users.layout.rank >= 2
    assert evidence(start) > evidence(alone)
    assert squared_error(start, table) < 0.6 * squared_error(alone, table)


def test_where_there_are_only_biases_a_start_foretells_as_biases_do() -> None:
    training, table = world(0, 600)
    settings = FitSettings(STARS)
    start = best_start(training, settings, np.random.default_rng(1))
    assert start.parameters.users.layout.rank == 1
    assert squared_error(start, table) < 1.02 * squared_error(flat(training, settings), table)


def test_a_rank_that_is_asked_for_is_kept() -> None:
    training, _ = world(0, 600)
    start = best_start(training, FitSettings(STARS, rank=3), np.random.default_rng(1))
    assert start.parameters.users.layout.rank == start.parameters.items.layout.rank == 3


@pytest.mark.parametrize("rank", [1, 4])
def test_evidence_grows_from_sweep_to_sweep(rank: int) -> None:
    training, _ = world(2, 1_400)
    state = initial_state(training, FitSettings(STARS, rank=rank), np.random.default_rng(1))
    found = []
    for _ in range(12):
        state.sweep()
        found.append(evidence(state))
    assert np.all(np.diff(found) > -0.5)
    assert found[-1] > found[0] + 10.0
