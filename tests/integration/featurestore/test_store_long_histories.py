"""A history of any length costs a bounded answer of the store, and what is taken back stays taken back."""

import numpy as np
import pytest

from factors import SAMPLED, Float32s
from featurestore import codecs
from featurestore.generations.live import LiveGeneration
from featurestore.ratings.batches import Columns
from featurestore.store import Store
from featurestore.users.histories import ANSWER_ENTRIES, RENEW_EVENTS
from tests.support.factories import as_live, lead, make_items, make_model, publish
from tests.support.waiting import wait_until_async

ITEMS, MANY = 16_000, 10_000


@pytest.fixture
async def live(store: Store) -> LiveGeneration:
    ids = [b"%d" % row for row in range(ITEMS)]
    await store.items(1).register(ids)
    items = np.tile(make_items(make_model(), 400), (ITEMS // 400, 1))
    return as_live(await publish(store, await lead(store), items=items, n_items=ITEMS))


async def rate(store: Store, items: np.ndarray) -> None:
    for some in np.split(items, range(5_000, len(items), 5_000)):
        ids, times = [b"%d" % item for item in some.tolist()], np.full(len(some), 1e9)
        await store.ratings.append_columns(Columns([b"u"] * len(ids), ids, 1.0 + some % 5, times))


async def vector(store: Store, live: LiveGeneration) -> Float32s:
    current = await store.users.current(live, [b"u"])
    await wait_until_async(
        lambda: store.redis.hget(store.keys.user(1, b"u"), f"g{live.generation}"),
        "the record is written back",
        lambda record: record and int.from_bytes(record[:8], "little") == current.n[0],
    )
    row: Float32s = current.vectors[0]
    return row


async def by_hand(store: Store, live: LiveGeneration) -> Float32s:
    data = await store.redis.get(store.keys.history(1, b"u"))
    assert isinstance(data, bytes)
    packed = codecs.pack_histories([codecs.unpack_history(data, store.scale.value)])
    row: Float32s = live.posterior.fold_in_users(live.items, packed)[0]
    return row


async def sent(store: Store) -> int:
    return int((await store.redis.info("stats"))["total_net_output_bytes"])


async def test_a_rating_of_a_user_with_very_many_costs_a_bounded_answer(
    store: Store, live: LiveGeneration
) -> None:
    order = np.random.default_rng(1).permutation(ITEMS)
    await rate(store, order[:MANY])
    before = await sent(store)
    (end,) = await store.users.parts(1, [b"u"], one_look=True)
    assert await sent(store) - before < ANSWER_ENTRIES * codecs.ENTRY_BYTES + 10_000
    assert end.item_row.tolist() == order[MANY - ANSWER_ENTRIES : MANY].tolist()
    await vector(store, live)
    # More come than one sample spans. None is taken back, so that what is read gives the same as everything.
    rated = MANY
    for more in (1, 1, 700, 1_500, 1, 3_000, 1):
        await rate(store, order[rated : rated + more])
        rated += more
        before = await sent(store)
        folded = await store.users.current(live, [b"u"])
        profile = await store.users.profile(live, b"u")
        assert folded.folded[0]
        if more == 1:
            # Each of the two: the sample and the latest entries, not 200 KB.
            most = 2 * (2 * SAMPLED + ANSWER_ENTRIES) * codecs.ENTRY_BYTES
            assert await sent(store) - before < most + 10_000
            assert not profile.whole
            assert len(profile.history) <= 2 * SAMPLED + ANSWER_ENTRIES
            (part,) = await store.users.parts(1, [b"u"], one_look=True)
            assert part.item_row.tolist() == profile.history.item_row.tolist()
        np.testing.assert_allclose(folded.vectors[0], await by_hand(store, live), atol=1e-5)
        await vector(store, live)
    assert profile.n == rated
    sample = await store.redis.hget(store.keys.user(1, b"u"), "sample")
    assert isinstance(sample, bytes)
    assert int.from_bytes(sample[:8], "little") > rated - RENEW_EVENTS
    # A damaged one is as good as none.
    await store.redis.hset(store.keys.user(1, b"u"), "sample", b"\xff" * 44)
    await rate(store, order[:1])
    np.testing.assert_allclose(await vector(store, live), await by_hand(store, live), atol=1e-5)
