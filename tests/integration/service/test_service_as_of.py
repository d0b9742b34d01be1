"""Predictions of a time: a user who moves is where he was."""

import numpy as np
import pytest

from factors import Scorer, posterior_of
from featurestore.codecs import pack_histories
from featurestore.settings import StoreSettings
from featurestore.store import Store
from tests.support.factories import (
    lead,
    make_model,
    publish,
    rating,
    with_moving_users,
)
from tests.support.serving import BOTH_WAYS, serves, serving


@BOTH_WAYS
async def test_a_user_who_moves_is_where_he_was_and_where_the_next_rating_takes_him(
    store: Store, store_settings: StoreSettings
) -> None:
    span_s, n_items = 1e7, 12
    model = with_moving_users(make_model(), 1e9, span_s)
    await store.items(1).register([b"item-%d" % row for row in range(n_items + 1)])
    # From loving everything to hating it.
    times = np.linspace(1e9, 1e9 + span_s, n_items)
    rated = [
        rating("ann", f"item-{row}", 5.0 - 4.0 * row / (n_items - 1), float(time))
        for row, time in enumerate(times)
    ]
    await store.ratings.append(rated[:-1])
    written = await publish(store, await lead(store), n_items=n_items + 1, users=[b"ann"], model=model)
    scorer = Scorer(posterior_of(model), written.items)
    ask = f"/predict?user_id=ann&item_id=item-{n_items}"
    async with serving(store_settings) as (client, _):
        await serves(client, written.writer.number)
        for more in (None, rated[-1]):
            if more is not None:
                await store.ratings.append([more])
            _, history = await store.users.history(1, b"ann")
            row = posterior_of(model).fold_in_users(written.items, pack_histories([history]))
            found = {}
            for time in (None, times[0], times[5], times[-1] + span_s):
                when = None if time is None else np.array([time])
                wanted = scorer.score(row, np.zeros(1, dtype=np.int64), np.array([n_items]), when)
                reply = (await client.get(ask if time is None else f"{ask}&timestamp={time}")).json
                assert reply["rating"] == pytest.approx(float(wanted.rating[0]), abs=1e-5)
                assert reply["std"] == pytest.approx(float(wanted.std[0]), abs=1e-5)
                found[time] = reply["rating"]
            assert found[times[0]] > found[times[5]] > found[None] + 0.2
