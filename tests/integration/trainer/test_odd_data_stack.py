"""Each kind of odd data goes through a whole stack: taken, fitted by compiled loops, published, answered."""

import math
import uuid
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest

from factors.inference.compiled.backend import LoopBackend
from featurestore.settings import StoreSettings, format_scale
from tests.support.odd_data import ODD_DATA, OddData
from tests.support.servers import StoreServer
from tests.support.serving import Client, serves, serving
from tests.support.trainers import running_trainer, trainer_settings

# In one call: of the heavy user's ratings so many say as much as all.
MOST = 4_000


async def learned(client: Client, odd: OddData) -> int:
    """Tell them, and wait for a fit; the number of the generation. Only a history can be without times."""
    given = odd.ratings
    columns = (given.user_row, given.item_row, given.value, given.time)
    user, item, value, time = (column[-MOST:].tolist() for column in columns)
    history = {"nb_users": odd.n_users, "nb_items": odd.n_items, "user_history": user, "item_history": item}
    history["rating_history"] = value
    if not np.isnan(given.time).all():
        history = {}
        rows = [{"user_id": u, "item_id": i, "rating": v} for u, i, v in zip(user, item, value, strict=True)]
        rows = [
            row if math.isnan(at) else row | {"timestamp": at} for row, at in zip(rows, time, strict=True)
        ]
        reply = await client.post("/ratings", rows)
        assert reply.status == 200, reply.text
    reply = await client.post("/train?wait=600", history or None)
    assert reply.status == 200, reply.text
    return int(reply.json["generation"])


async def answers(client: Client, odd: OddData, user: str, item: str) -> None:
    low, high = odd.scale.low, odd.scale.high
    reply = await client.get(f"/predict?user_id={user}&item_id={item}")
    assert reply.status == 200, reply.text
    assert low <= reply.json["rating"] <= high
    assert reply.json["std"] > 0
    if odd.constant is not None:
        assert reply.json["rating"] == pytest.approx(odd.constant, abs=0.01 * (high - low))
    for order in ("score", "rating"):
        reply = await client.get(f"/recommend/{user}?n=5&order={order}")
        assert reply.status == 200, reply.text
        assert reply.json["order"] == order, "there is a ranking head"
        assert all(low <= each["rating"] <= high for each in reply.json["items"])
    if "new" in (user, item):
        return
    reply = await client.get(f"/explain/{user}/{item}")
    assert reply.status == 200, reply.text
    parts = sum(each["contribution"] for each in reply.json["parts"])
    assert reply.json["base"] + parts == pytest.approx(reply.json["rating"], abs=1e-3 * (high - low))


@pytest.mark.parametrize("half_step", ["numpy", "compiled"])
@pytest.mark.parametrize("name", ODD_DATA)
async def test_what_is_odd_is_published_and_answers(
    name: str, half_step: str, store_server: StoreServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = 1 if half_step == "compiled" else 10**9
    for module in ("inference.compiled.backend", "ranking.training", "ranking.half_steps"):
        monkeypatch.setattr(f"factors.{module}.MANY_RATINGS", many)
    compiled = Mock(wraps=LoopBackend)
    monkeypatch.setattr("factors.inference.compiled.backend.LoopBackend", compiled)
    make: Callable[[], OddData] = ODD_DATA[name]
    odd = make()
    store = StoreSettings(
        url=store_server.url,
        namespace=f"t-{uuid.uuid4().hex[:12]}",
        partitions=4,
        timeout_s=30.0,
        scale=format_scale(odd.scale),
    )
    async with running_trainer(trainer_settings(store, tmp_path / "archive")), serving(store) as (client, _):
        await serves(client, await learned(client, odd))
        assert compiled.called == (half_step == "compiled")
        given = odd.ratings
        user, item = f"{given.user_row[-1]}", f"{given.item_row[-1]}"
        for pair in ((user, item), ("new", item), (user, "new")):
            await answers(client, odd, *pair)
        some = slice(-300, None)
        pairs = [[str(k), str(j)] for k, j in zip(given.user_row[some], given.item_row[some], strict=True)]
        found = (await client.post("/predict", {"pairs": pairs})).json["predictions"]
        error = np.array([each["rating"] for each in found]) - given.value[some]
        assert np.sqrt(np.mean(error**2)) <= max(given.value[-MOST:].std(), 0.02), "each row is its item's"
        # They rate, and are known.
        met = {"user_id": "met", "item_id": "met", "rating": float(odd.ratings.value[-1])}
        assert (await client.post("/ratings", met)).status == 200
        await answers(client, odd, "met", item)
        await answers(client, odd, user, "met")
        # Of a pair that came twice the last one stands.
        page = (await client.get(f"/users/{user}/ratings?n=1000")).json
        shown = {each["item_id"]: each["rating"] for each in page["ratings"]}
        assert shown[item] == pytest.approx(odd.ratings.value[-1])
