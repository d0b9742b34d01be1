"""Each kind of odd data goes through a whole stack: taken, fitted by compiled loops, published, answered."""

import math
import uuid
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import pytest

from factors.inference.compiled.backend import LoopBackend
from featurestore.settings import StoreSettings, format_scale
from tests.support.odd_data import ODD_DATA, OddData
from tests.support.servers import StoreServer
from tests.support.serving import Client, serves, serving
from tests.support.trainers import running_trainer, trainer_settings

# In one call: of the heavy user's ratings so many say as much as all.
MOST = 4_000


async def tell(client: Client, odd: OddData) -> None:
    given = odd.ratings
    columns = (given.user_row, given.item_row, given.value, given.time)
    rows = []
    for user, item, value, at in zip(*(column[-MOST:].tolist() for column in columns), strict=True):
        row = {"user_id": f"u{user}", "item_id": f"i{item}", "rating": value}
        rows.append(row if math.isnan(at) else {**row, "timestamp": at})
    reply = await client.post("/ratings", rows)
    assert reply.status == 200, reply.text


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
        assert all(low <= each["rating"] <= high for each in reply.json["items"])
    if "new" in (user, item):
        return
    reply = await client.get(f"/explain/{user}/{item}")
    assert reply.status == 200, reply.text
    parts = sum(each["contribution"] for each in reply.json["parts"])
    assert reply.json["base"] + parts == pytest.approx(reply.json["rating"], abs=1e-3 * (high - low))


@pytest.mark.parametrize("name", ODD_DATA)
async def test_what_is_odd_is_published_and_answers(
    name: str, store_server: StoreServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("factors.inference.compiled.backend.MANY_RATINGS", 1)
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
        await tell(client, odd)
        reply = await client.post("/train")
        assert reply.status == 200, reply.text
        await serves(client, reply.json["generation"])
        last = odd.ratings.user_row[-1], odd.ratings.item_row[-1]
        assert compiled.called
        for user, item in ((f"u{last[0]}", f"i{last[1]}"), ("new", f"i{last[1]}"), (f"u{last[0]}", "new")):
            await answers(client, odd, user, item)
        # They rate, and are known.
        met = {"user_id": "met", "item_id": "met", "rating": float(odd.ratings.value[-1])}
        assert (await client.post("/ratings", met)).status == 200
        await answers(client, odd, "met", f"i{last[1]}")
        await answers(client, odd, f"u{last[0]}", "met")
        # Of a pair that came twice the last one stands.
        page = (await client.get(f"/users/u{last[0]}/ratings?n=1000")).json
        shown = {each["item_id"]: each["rating"] for each in page["ratings"]}
        assert shown[f"i{last[1]}"] == pytest.approx(odd.ratings.value[-1])
