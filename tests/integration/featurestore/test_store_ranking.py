"""The ranking head of a generation: shared by the workers of a host, followed, and left out where it is
damaged.
"""

from pathlib import Path

import numpy as np
import pytest

from factors import RankingHead, head_to_bytes
from featurestore.generations.follower import Follower
from featurestore.generations.served import wait_until_served
from featurestore.store import Store
from tests.integration.featurestore.test_store_follower import contents, files, until
from tests.support.factories import lead, make_head, publish
from tests.support.following import following
from tests.support.waiting import PATIENCE_S

N_ITEMS = 8


def head_of(follower: Follower) -> RankingHead:
    assert follower.live is not None
    assert follower.live.ranking is not None
    return follower.live.ranking.head


async def test_factors_of_new_and_changed_items_are_followed(store: Store, tmp_path: Path) -> None:
    lease = await lead(store)
    head = make_head(N_ITEMS)
    written = await publish(store, lease, head=head)
    number, generations = written.writer.number, store.generations
    await generations.claim_deltas(lease, 1, number)
    rank = head.parameters.rank

    async def push(rows: list[int], factors: np.ndarray | None) -> None:
        vectors = np.repeat(written.items[:1], len(rows), axis=0)
        await generations.push_delta(lease, 1, number, np.array(rows, np.int32), vectors, factors=factors)

    await push([3], np.full((1, rank), 0.25, np.float32))
    async with following(store, tmp_path) as follower, following(store, tmp_path, "v") as other:
        for each in (follower, other):
            assert await wait_until_served(generations, 1, number, PATIENCE_S, here=each)
            np.testing.assert_array_equal(head_of(each).items[3], np.full(rank, 0.25))
        await push([11, 4], np.array([[0.5] * rank, [np.nan] * rank], np.float32))
        # One without ratings to rank by.
        await push([12], None)
        for each in (follower, other):
            await until(lambda each=each: len(head_of(each).items) == 13, "the head grows")  # type: ignore[misc]
            items = head_of(each).items
            np.testing.assert_array_equal(items[11], np.full(rank, 0.5))
            np.testing.assert_array_equal(items[4], head.items[4])
            assert not items[8:11].any()
            assert not items[12].any()
    # The file that workers share is as it was published.
    (path,) = files(tmp_path, "*.ranking")
    assert contents(path) == head_to_bytes(head)


async def test_merged_deltas_keep_the_factors(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("featurestore.generations.catalog.DELTAS_MERGED", 3)
    lease = await lead(store)
    head = make_head(N_ITEMS)
    written = await publish(store, lease, head=head)
    number, rank = written.writer.number, head.parameters.rank
    await store.generations.claim_deltas(lease, 1, number)
    for row in range(6):
        factors = np.full((1, rank), float(row), np.float32)
        rows, vectors = np.array([row], np.int32), written.items[:1]
        positives = np.array([[0.5, row]], np.float32) if row % 2 else None
        more = {"factors": factors, "positives": positives}
        await store.generations.push_delta(lease, 1, number, rows, vectors, **more)
    assert await store.redis.xlen(store.keys.deltas(1, number)) < 6
    found = await store.generations.read_deltas(1, number, written.model.item_width, rank=rank)
    assert (found.ranked.tolist(), found.factors[:, 0].tolist()) == ([0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5])
    # And what is said of positive events, of those of which anything is.
    assert (found.counted.tolist(), found.positives.tolist()) == (
        [1, 3, 5],
        [[0.5, row] for row in (1, 3, 5)],
    )


async def test_a_damaged_head_is_no_head(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    written = await publish(store, await lead(store), head=make_head(N_ITEMS))
    number = written.writer.number
    await store.redis.setrange(store.keys.index_chunk(1, number, 0), 100, b"other bytes")
    # It is damaged, and then it is gone.
    for _ in range(2):
        async with following(store, tmp_path) as follower:
            await until(lambda follower=follower: follower.live is not None, "it serves")  # type: ignore[misc]
            assert follower.live is not None
            assert follower.live.ranking is None
        assert "cannot be used" in caplog.text
        assert files(tmp_path, "*ranking*") == []
        await store.redis.delete(store.keys.index_chunk(1, number, 0))
