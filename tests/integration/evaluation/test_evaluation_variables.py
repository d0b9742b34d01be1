"""A world whose events have variables, played through the API with a real store, service and trainer."""

from pathlib import Path

import pytest

from environment.world import WorldOptions
from evaluation.course.protocol import evaluate
from evaluation.course.settings import EvaluationSettings
from featurestore.settings import StoreSettings
from featurestore.store import Store
from tests.support.serving import serving
from tests.support.trainers import running_trainer, trainer_settings

# Four fits of the lecture's size run beside other tests.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


async def test_the_api_makes_use_of_the_variables_of_a_world(
    store_settings: StoreSettings, store: Store, tmp_path: Path
) -> None:
    async with (
        running_trainer(trainer_settings(store_settings, tmp_path)),
        serving(store_settings, train_wait_s=120.0) as (client, _),
    ):
        settings = EvaluationSettings(
            api=client.url,
            players=("deployed-blind", "deployed"),
            world=WorldOptions(n_variables=5),
            known=(2000,),
            steps=300,
            runs=1,
            seed=1,
            replace=True,
            answer_timeout_s=30.0,
            output=None,
        )
        report = await evaluate(settings)
        assert report.same_worlds
        assert all(summary.missing == 0 for summary in report.summaries()), report.summaries()
        # What the variables add is 2.5 of a variance of 11.5, which is noise to those who do not read them.
        assert report.mse("deployed") < 0.8 * report.mse("deployed-blind")
        # The second player's history is live, with its contexts; ratings of the play came in beside it.
        schema = (await client.get("/schema")).json["context"]
        assert schema == {f"v{number}": {"kind": "number"} for number in range(1, 6)}
        epoch = (await store.generations.live()).epoch
        histories = [(await store.users.history(epoch, b"%d" % user))[1] for user in range(100)]
        assert sum(map(len, histories)) == 2300
        assert all(history.context is not None for history in histories if len(history))
