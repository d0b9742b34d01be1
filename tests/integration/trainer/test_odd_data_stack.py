"""Each kind of odd data goes through a whole stack: taken, fitted by compiled loops, published, answered."""

import math
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest

from factors import Ratings, Scale
from factors.inference.compiled.backend import LoopBackend
from featurestore.settings import StoreSettings, format_scale
from tests.support.odd_data import ODD_DATA, OddData, world
from tests.support.servers import StoreServer
from tests.support.serving import Client, Reply, serves, serving
from tests.support.trainers import running_trainer, trainer_settings
from tests.support.waiting import wait_until_async

# In one call: of the heavy user's ratings so many say as much as all.
MOST = 4_000
# The fits of all the others are in tests/unit/factors/test_factors_fit.py.
GATE = {"two ratings", "constant", "half without times", "off-step values", "half stars"}
RANKING = ("ranking.fit", "ranking.training", "ranking.selection.search")
COLUMNS = ("user_id", "item_id", "rating", "timestamp")


@asynccontextmanager
async def stack(server: StoreServer, odd: OddData, given: Ratings, folder: Path) -> AsyncIterator[Client]:
    """A service that answers from what was learned of `given`. Only a history can be without times."""
    name, scale = f"t-{uuid.uuid4().hex[:12]}", format_scale(odd.scale)
    store = StoreSettings(url=server.url, namespace=name, partitions=4, timeout_s=30.0, scale=scale)
    async with running_trainer(trainer_settings(store, folder)), serving(store) as (client, _):
        users, items, values, times = given.user_row, given.item_row, given.value, given.time
        history = {"nb_users": odd.n_users, "nb_items": odd.n_items, "user_history": users.tolist()}
        history |= {"item_history": items.tolist(), "rating_history": values.tolist()}
        if not np.isnan(times).all():
            known = [None if math.isnan(at) else at for at in times.tolist()]
            columns = (users.tolist(), items.tolist(), values.tolist(), known)
            rows = [dict(zip(COLUMNS, row, strict=True)) for row in zip(*columns, strict=True)]
            for start in range(0, len(rows), 10_000):
                assert (await client.post("/ratings", rows[start : start + 10_000])).ok.json
            history = {}
        receipt = (await client.post("/train?wait=0", history or None)).json["receipt"]

        def done(reply: Reply) -> bool:
            assert reply.json["state"] != "failed", reply.json
            return bool(reply.json["state"] == "done")

        told = await wait_until_async(lambda: client.get(f"/train/{receipt}"), "a fit", done, timeout_s=1_500)
        await serves(client, told.json["generation"])
        yield client


async def answers(client: Client, odd: OddData, user: str, item: str) -> None:
    low, high = odd.scale.low, odd.scale.high
    reply = (await client.get(f"/predict?user_id={user}&item_id={item}")).ok
    assert low <= reply.json["rating"] <= high
    assert reply.json["std"] > 0
    if odd.constant is not None:
        assert reply.json["rating"] == pytest.approx(odd.constant, abs=0.01 * (high - low))
    for order in ("score", "rating"):
        reply = (await client.get(f"/recommend/{user}?n=5&order={order}")).ok
        assert reply.json["order"] == order, "there is a ranking head"
        assert all(low <= each["rating"] <= high for each in reply.json["items"])
    if "new" in (user, item):
        return
    reply = (await client.get(f"/explain/{user}/{item}")).ok
    parts = sum(each["contribution"] for each in reply.json["parts"])
    assert reply.json["base"] + parts == pytest.approx(reply.json["rating"], abs=1e-3 * (high - low))


async def error(client: Client, of: Ratings) -> float:
    pairs = [[str(user), str(item)] for user, item in zip(of.user_row, of.item_row, strict=True)]
    found = (await client.post("/predict", {"pairs": pairs})).json["predictions"]
    return float(np.sqrt(np.mean((np.array([each["rating"] for each in found]) - of.value) ** 2)))


@pytest.mark.parametrize("half_step", [pytest.param("numpy", marks=pytest.mark.slow), "compiled"])
@pytest.mark.parametrize(
    "name", [pytest.param(each, marks=[] if each in GATE else pytest.mark.slow) for each in ODD_DATA]
)
async def test_what_is_odd_is_published_and_answers(
    name: str, half_step: str, store_server: StoreServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = 1 if half_step == "compiled" else 10**9
    for module in ("inference.compiled.backend", *RANKING):
        monkeypatch.setattr(f"factors.{module}.MANY_RATINGS", many)
    compiled = Mock(wraps=LoopBackend)
    monkeypatch.setattr("factors.inference.compiled.backend.LoopBackend", compiled)
    odd = ODD_DATA[name]()
    given = odd.ratings.take(np.arange(len(odd.ratings.value))[-MOST:])
    async with stack(store_server, odd, given, tmp_path) as client:
        assert compiled.called == (half_step == "compiled")
        user, item = f"{given.user_row[-1]}", f"{given.item_row[-1]}"
        for pair in ((user, item), ("new", item), (user, "new")):
            await answers(client, odd, *pair)
        latest = given.take(np.arange(len(given.value))[-300:])
        assert await error(client, latest) <= max(given.value.std(), 0.02), "each row is its item's"
        # They rate, and are known.
        met = {"user_id": "met", "item_id": "met", "rating": float(odd.ratings.value[-1])}
        assert (await client.post("/ratings", met)).status == 200
        await answers(client, odd, "met", item)
        await answers(client, odd, user, "met")
        # Of a pair that came twice the last one stands.
        page = (await client.get(f"/users/{user}/ratings?n=1000")).json
        shown = {each["item_id"]: each["rating"] for each in page["ratings"]}
        assert shown[item] == pytest.approx(odd.ratings.value[-1])


@pytest.mark.slow
@pytest.mark.timeout(1_800)
@pytest.mark.parametrize("scale", [Scale(-10, 10), Scale(0.5, 5, 0.5)], ids=["continuous", "stars"])
@pytest.mark.parametrize("n", [100_000, 500_000, 1_000_000])
async def test_many_ratings_do_too(n: int, scale: Scale, store_server: StoreServer, tmp_path: Path) -> None:
    odd = world(n // 50, 1_000, 0.05, scale)
    asked = np.random.default_rng(5).permutation(n)[:5_000]
    held_out, given = odd.ratings.take(asked), odd.ratings.take(np.setdiff1d(np.arange(n), asked))
    async with stack(store_server, odd, given, tmp_path) as client:
        assert await error(client, held_out) < 0.5 * held_out.value.std(), "more than biases say"
        await wait_until_async(
            lambda: client.get("/recommend/0?order=score"),
            "a ranking head of so many is fitted after them",
            lambda reply: reply.json["order"] == "score",
            timeout_s=1_500,
        )
        await answers(client, odd, f"{given.user_row[0]}", f"{given.item_row[0]}")
