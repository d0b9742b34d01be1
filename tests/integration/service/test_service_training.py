"""POST /train, forgetting and a scale that is put, while service and trainer run."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from featurestore.commands import Outcome
from featurestore.settings import StoreSettings
from featurestore.store import Store
from tests.support.factories import lead, publish, rating
from tests.support.serving import Client, is_problem, serves, serving
from tests.support.small_trainer import Trainer, training
from tests.support.trainers import running_trainer, trainer_settings
from tests.support.waiting import wait_until_async
from trainer.schedule import Rules
from trainer.settings import TrainerSettings

COLUMNS = {"user_history": [0, 1, 2, 0], "item_history": [0, 1, 2, 3], "rating_history": [1, 5, 3, 2]}
HISTORY = {"nb_users": 3, "nb_items": 4, **COLUMNS}


@pytest.fixture
async def trainer(store: Store) -> AsyncIterator[Trainer]:
    async with training(store, [b"old"]) as trainer:
        yield trainer


@pytest.fixture
async def client(store_settings: StoreSettings, trainer: Trainer) -> AsyncIterator[Client]:
    async with serving(store_settings, live=1, train_wait_s=60.0, erase_wait_s=60.0) as (client, _):
        yield client


async def test_a_new_history_replaces_the_old_one_and_nothing_unasked(client: Client) -> None:
    # Ratings that came by other ways are not lost unasked.
    await client.post("/ratings", {"user_id": "u", "item_id": "old", "rating": 3})
    assert is_problem(await client.post("/train", HISTORY), 409, "ratings_would_be_lost", ratings=1)
    assert (await client.get("/users/u")).status == 200
    reply = (await client.post("/train", {**HISTORY, "next_user": 1, "next_item": 2, "replace": True})).ok
    assert (reply.json["generation"], reply.json["epoch"], reply.json["served"]) == (2, 2, True)
    answer = (await client.get("/predict?user_id=0&item_id=1")).json
    assert (answer["generation"], answer["basis"]) == (2, "user+item")
    page = (await client.get("/users/0/ratings")).json
    assert {each["item_id"]: each["rating"] for each in page["ratings"]} == {"0": 1, "3": 2}
    assert {each["timestamp"] for each in page["ratings"]} == {None}
    # The whole catalogue can be recommended, also what no user has rated.
    known = (await client.get("/recommend/new?n=100")).json["items"]
    assert {each["item_id"] for each in known} == {"0", "1", "2", "3"}
    is_problem(await client.get("/items/old"), 404, "unknown_item")
    is_problem(await client.get("/users/u"), 404, "unknown_user")


async def test_the_old_one_answers(client: Client, store_settings: StoreSettings, trainer: Trainer) -> None:
    trainer.hold.clear()
    asked = asyncio.create_task(client.post("/train", HISTORY))
    await wait_until_async(lambda: bool(trainer.taken), "the command is taken")
    assert (await client.get("/predict?user_id=0&item_id=1")).json["generation"] == 1
    async with serving(store_settings) as (other, _):
        for worker in (client, other):
            is_problem(await worker.post("/train", HISTORY), 409, "train_in_progress")
    # A rating of now belongs to both, the live history and the new one.
    await client.post("/ratings", {"user_id": "u", "item_id": "1", "rating": 4})
    assert (await client.get("/users/u")).json["ratings"] == 1
    trainer.hold.set()
    assert (await asked).status == 200
    assert (await client.get("/users/u")).json["ratings"] == 1


async def test_a_failure_leaves_what_was(client: Client, store: Store, trainer: Trainer) -> None:
    for cause, detail, status, code in (
        ("fit_refused", "one rating is not enough", 422, "training_refused"),
        ("gate_refused", "no better than means", 422, "training_refused"),
        # 503 says when to try again: nothing is wrong with the ratings.
        ("fit_failed", "the fit ended", 503, "training_failed"),
        ("store", "a key is damaged", 503, "training_failed"),
    ):
        outcome = Outcome("failed", code=cause, detail=detail)
        trainer.decide = lambda command, outcome=outcome: outcome  # type: ignore[misc]  # its default
        assert is_problem(await client.post("/train", HISTORY), status, code, detail=detail, cause=cause)
        assert (await store.generations.live()).pending == 0
        assert (await client.get("/predict?user_id=0&item_id=1")).json["generation"] == 1
    trainer.decide = lambda command: None
    assert (await client.post("/train", HISTORY)).status == 200


async def test_waits_and_receipts(client: Client, store_settings: StoreSettings, trainer: Trainer) -> None:
    trainer.hold.clear()
    patient = asyncio.create_task(client.ask("POST", "/train?wait=600"))
    await wait_until_async(lambda: bool(trainer.taken), "the refit is taken")
    assert [command.kind for command in trainer.taken] == ["refit"]
    async with serving(store_settings, train_wait_s=60.0) as (other, _):
        assert not patient.done()
        trainer.hold.set()
        refitted = await patient
        assert (refitted.status, refitted.json["epoch"]) == (200, 1)
        trainer.hold.clear()
        trainer.taken.clear()
        reply = await other.ask("POST", "/train?wait=0")
        assert reply.status == 202
        progress = f"/train/{reply.json['receipt']}"
        await wait_until_async(lambda: bool(trainer.taken), "it is taken")
        told = (await other.get(progress)).json
        assert (told["state"], told["since"]) == ("running", reply.json["since"])
        failed = Outcome("failed", code="fit_failed", detail="it ended", phase="trial")
        trainer.decide = lambda command: failed
        trainer.hold.set()
        state = "the training has failed"
        await wait_until_async(lambda: other.get(progress), state, lambda got: got.json["state"] == "failed")
        told = (await other.get(progress)).json
        assert [told[name] for name in ("cause", "detail", "phase")] == ["fit_failed", "it ended", "trial"]
    for wait in ("-1", "3601", "1.5"):
        is_problem(await client.ask("POST", f"/train?wait={wait}"), 400, "invalid_parameter")
    for receipt in ("nothing", "0" * 32, f"{'0' * 32}-{1:x}"):
        is_problem(await client.get(f"/train/{receipt}"), 404, "unknown_receipt")
    # The other one is of a replica whose clock is ahead.
    for since_s in (int(time.time()), int(time.time()) + 30):
        told = (await client.get(f"/train/{'0' * 32}-{since_s:x}")).json
        assert told.get("state") == "waiting"


async def test_without_a_trainer_a_history_is_given_up(store: Store) -> None:
    await publish(store, await lead(store), n_items=1)
    async with serving(store.settings, live=1, train_wait_s=0.2) as (client, _):
        is_problem(await client.post("/train", HISTORY), 504, "training_timeout")
        assert (await store.generations.live()).pending == 0
        refit = await client.ask("POST", "/train")
        assert (refit.status, refit.json["state"]) == (202, "waiting")


async def test_forgetting_reaches_the_archive(client: Client, store: Store, trainer: Trainer) -> None:
    await store.ratings.append([rating("ann", "old", 4.0)])
    reply = await client.ask("DELETE", "/users/ann")
    assert (reply.json["archive"], reply.json["ratings"]) == ("erased", 1)
    assert [(command.kind, command.user) for command in trainer.taken] == [("erase", b"ann")]
    assert (await client.get(f"/receipts/{reply.json['receipt']}")).json["archive"] == "erased"
    # Again, and for one who never was: the archive may know more than the store.
    assert (await client.ask("DELETE", "/users/ann")).json["ratings"] == 0


@pytest.fixture
def undecided(store_settings: StoreSettings) -> StoreSettings:
    return replace(store_settings, namespace=f"{store_settings.namespace}-scale", scale=None)


@pytest.fixture
def settings(undecided: StoreSettings, tmp_path: Path) -> TrainerSettings:
    return trainer_settings(undecided, tmp_path / "archive", rules=Rules(seconds=3_600.0))


async def status(client: Client) -> tuple[list[float | None], bool]:
    found = (await client.get("/status")).json
    return found["scale"], found["scale_decided"]


@pytest.mark.slow
async def test_a_scale_is_that_of_every_answer(undecided: StoreSettings, settings: TrainerSettings) -> None:
    scale = {"low": -10.0, "high": 10.0, "step": 0.5}
    given = [-10.0 + 0.5 * (k * 13 % 41) for k in range(120)]
    async with running_trainer(settings), serving(undecided) as (one, _), serving(undecided) as (other, _):
        await serves(one, 1)
        await serves(other, 1)
        assert await status(one) == ([1, 5, None], False)
        # Off the scale that a first rating would make it: it says what to do, and decides nothing.
        refused = await one.post("/ratings", {"user_id": "ann", "item_id": "tea", "rating": 200})
        assert is_problem(refused, 422, "invalid_body", says="PUT /scale before the first rating")
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
        assert is_problem(refused, 409, "scale_decided", says="FOLDIN_NAMESPACE")
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
