"""A scale that is decided while service and trainer run: both take it over, and no answer is by another."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from featurestore.settings import DEFAULT_SCALE, StoreSettings
from service.context import CONTEXT
from tests.support.serving import Client, is_problem, serves, serving
from tests.support.trainers import running_trainer, trainer_settings
from tests.support.waiting import wait_until_async
from trainer.schedule import Rules
from trainer.settings import TrainerSettings


@pytest.fixture
def undecided(store_settings: StoreSettings) -> StoreSettings:
    return replace(store_settings, namespace=f"{store_settings.namespace}-scale", scale=None)


@pytest.fixture
def settings(undecided: StoreSettings, tmp_path: Path) -> TrainerSettings:
    return trainer_settings(undecided, tmp_path / "archive", rules=Rules(seconds=3_600.0))


async def status(client: Client) -> tuple[list[float | None], bool]:
    found = (await client.get("/status")).json
    return found["scale"], found["scale_decided"]


async def test_a_scale_that_is_put_is_that_of_every_answer(
    undecided: StoreSettings, settings: TrainerSettings
) -> None:
    scale = {"low": -10.0, "high": 10.0, "step": 0.5}
    given = [-10.0 + 0.5 * (k * 13 % 41) for k in range(120)]
    async with running_trainer(settings), serving(undecided) as (one, _), serving(undecided) as (other, _):
        await serves(one, 1)
        await serves(other, 1)
        assert await status(one) == ([1, 5, None], False)
        # Off the scale that a first rating would make it: it says what to do, and decides nothing.
        refused = await one.post("/ratings", {"user_id": "ann", "item_id": "tea", "rating": 200})
        assert is_problem(refused, 422, "invalid_body")
        assert "PUT /scale before the first rating" in refused.json["detail"]
        for wrong in ({"low": 5, "high": 1}, {"low": 1, "high": 5, "step": 3}, {"low": 0, "high": 1e-200}):
            assert is_problem(await one.ask("PUT", "/scale", json=wrong), 422, "invalid_body")
        answers = await asyncio.gather(*(each.ask("PUT", "/scale", json=scale) for each in (one, other)))
        told = {**scale, "served": True}
        assert [each.json for each in answers] == [told, told]
        for each in (one, other):
            assert await status(each) == ([-10, 10, 0.5], True)
            predicted = (await each.get("/predict?user_id=ann&item_id=tea")).json
            assert predicted["generation"] == 2
            assert predicted["rating"] == pytest.approx(0.0, abs=4.0)
        refused = await other.ask("PUT", "/scale", json={"low": 1, "high": 7})
        assert is_problem(refused, 409, "scale_decided")
        assert "FOLDIN_NAMESPACE" in refused.json["detail"]
        rated = [{"user_id": f"u{k % 12}", "item_id": f"i{k // 12}", "rating": given[k]} for k in range(120)]
        # The first hundred ratings are fitted at once, though no other rule asks for it.
        assert (await one.post("/ratings", rated)).status == 200
        await serves(other, 3)
        found = (await other.get("/generations")).json["generations"][0]
        assert (found["generation"], found["n_ratings"]) == (3, 120)
        for k in range(9):
            answer = (await other.get(f"/predict?user_id=u{k}&item_id=i{k}")).json["rating"]
            assert min(given) <= answer <= max(given)
        # Going back to what was before the decision is not possible.
        assert is_problem(await one.post("/generations/1/activate"), 404, "unknown_generation")


async def test_the_first_rating_makes_it_one_to_five(
    undecided: StoreSettings, settings: TrainerSettings
) -> None:
    async with running_trainer(settings), serving(undecided) as (client, _), serving(undecided) as (other, _):
        await serves(client, 1)
        await serves(other, 1)
        body = {"user_id": "ann", "item_id": "tea", "rating": 4}
        assert (await client.post("/ratings", body)).status == 200

        async def is_known() -> bool:
            return await status(other) == ([1, 5, None], True)

        await wait_until_async(is_known, "the other service knows it")
        refused = await other.ask("PUT", "/scale", json={"low": 0, "high": 100})
        assert is_problem(refused, 409, "scale_decided")
        # The prior that is live is of this scale: it goes on.
        assert (await client.get("/predict?user_id=bob&item_id=tea")).json["generation"] == 1


async def test_a_worker_that_has_not_heard_of_the_scale_yet_asks_before_it_refuses(
    undecided: StoreSettings,
) -> None:
    async with serving(undecided) as (one, _), serving(undecided) as (other, app):
        assert (await one.ask("PUT", "/scale", json={"low": 0, "high": 10})).status == 200
        scale, who = app[CONTEXT].store.scale, {"user_id": "ann", "item_id": "tea"}
        for path, body in (
            ("/ratings", {**who, "rating": 0.5}),
            ("/events", {**who, "type": "rating", "value": 0.5}),
        ):
            # As it was before it followed, which it does ten times a second.
            scale.value, scale.decided = DEFAULT_SCALE, False
            answer = await other.post(path, body)
            assert (answer.status, answer.json["accepted"]) == (200, 1)
        scale.value, scale.decided = DEFAULT_SCALE, False
        refused = await other.post("/ratings", {**who, "rating": 11})
        assert is_problem(refused, 422, "invalid_body")
        assert "from 0 to 10" in refused.json["detail"]
