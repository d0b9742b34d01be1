"""Players that the caller brings: Foldin's model in the player's own process, known by name alone."""

import numpy as np
import pytest

from environment.client import KnownRatings, Pair
from environment.world import WorldOptions
from evaluation.course.protocol import evaluate
from evaluation.course.settings import EvaluationSettings
from evaluation.players.model import model_players
from processes.settings import SettingsError

WORLD = WorldOptions(n_users=15, n_items=20)


@pytest.mark.slow
async def test_model_players_play_beside_the_others_and_say_how_sure_they_are() -> None:
    settings = EvaluationSettings(
        players=("constant", "variational", "ordinal"), steps=20, runs=1, known=(150,), seed=3, world=WORLD
    )
    report = await evaluate(settings, brought=model_players())
    by_name = {summary.player: summary for summary in report.summaries()}
    assert np.isnan(by_name["constant"].coverage)
    for name in ("variational", "ordinal"):
        assert by_name[name].missing == 0
        assert 0 <= by_name[name].coverage <= 1
    assert "rank" in by_name["ordinal"].note


async def test_a_rating_counts_at_once_also_of_a_new_user() -> None:
    player = model_players()["variational"](1)
    rng = np.random.default_rng(1)
    pairs = rng.permutation(300)[:200]
    history = KnownRatings(15, 20, pairs // 20, pairs % 20, rng.integers(1, 6, 200).astype(float))
    await player.prepare(history)
    before = await player.predict(Pair(3, 4))
    assert player.std > 0
    for item in (5, 6, 7):
        await player.learn(Pair(3, item), 5.0)
    assert await player.predict(Pair(3, 4)) != before
    await player.learn(Pair(16, 21), 4.0)
    assert 1 <= await player.predict(Pair(16, 4)) <= 5
    await player.close()


async def test_a_player_that_is_not_there_is_refused_with_what_to_do() -> None:
    settings = EvaluationSettings(players=("ordinal",), steps=5, runs=1, known=(50,), world=WORLD)
    with pytest.raises(SettingsError, match="foldin evaluate"):
        await evaluate(settings)
