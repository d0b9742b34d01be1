"""The follower: one generation, whole, at any moment; new ones are loaded beside, and deltas come in."""

import asyncio
import time
from collections.abc import Awaitable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from factors import head_to_bytes, posterior_of
from featurestore.errors import StoreRefused, StoreUnavailable
from featurestore.generations import item_table_file as itemtable
from featurestore.generations.follower import Follower
from featurestore.generations.live import LiveGeneration
from featurestore.generations.loader import GenerationLoader
from featurestore.generations.served import FOLLOWED_S, wait_until_served
from featurestore.ratings.epochs import Epochs
from featurestore.store import Store
from tests.support.factories import Written, lead, make_head, opened, publish, rating
from tests.support.following import following, head_of, live_of
from tests.support.waiting import PATIENCE_S, wait_until_async

N_ITEMS = 8


def capacity_of(rows: int) -> int:
    return int(rows * itemtable.GROWTH) + itemtable.SPARE_ROWS


def files(folder: Path, pattern: str = "*.items") -> list[Path]:
    return list(folder.glob(pattern))


async def until_served(store: Store, written: Written, *followers: Follower) -> None:
    for follower in followers:
        assert await wait_until_served(
            store.generations, written.meta.summary.epoch, written.writer.number, PATIENCE_S, here=follower
        )


async def test_what_is_live_is_served_whole_and_old_files_go(store: Store, tmp_path: Path) -> None:
    with pytest.raises(StoreRefused, match="FOLDIN_CACHE_DIR"):
        Follower(store, Path(__file__) / "below", "w")
    async with following(store, tmp_path) as follower:
        await wait_until_async(lambda: follower.pointer is not None, "the pointer is polled")
        assert follower.live is None
        assert not await wait_until_served(store.generations, 1, 1, 0.0, here=follower)
        lease = await lead(store)
        made = []
        for seed in range(4):
            made.append(await publish(store, lease, n_items=5 + seed, seed=seed))
            await until_served(store, made[-1], follower)
            live = live_of(follower)
            np.testing.assert_array_equal(live.items[: 5 + seed], made[-1].items)
            assert (live.epoch, live.n_items, live.ranker.n_items) == (1, 5 + seed, 5 + seed)
        await wait_until_async(lambda: len(files(tmp_path, "*.items")) <= 3, "removed ones go")
        assert follower.loads_total == 4
        async with opened(store.settings) as other:
            await other.ratings.append([rating("u", f"i{n}") for n in range(2_100)])
        await wait_until_async(lambda: len(store.items(1)) == 2_100, "new items become known")
        # Back to the one before; a caller that still holds the last one has it whole.
        await store.generations.activate(made[2].writer.number, hold=True)
        await wait_until_async(lambda: live_of(follower).generation == made[2].writer.number, "it goes back")
        np.testing.assert_array_equal(live_of(follower).items[:7], made[2].items)
        np.testing.assert_array_equal(live.items[:8], made[3].items)


async def test_deltas_arrive_in_place_and_new_items_grow_the_tables(store: Store, tmp_path: Path) -> None:
    lease, head = await lead(store), make_head(N_ITEMS)
    written = await publish(store, lease, n_items=N_ITEMS, head=head)
    number, rank = written.writer.number, head.parameters.rank
    await store.generations.claim_deltas(lease, 1, number)
    codec = posterior_of(written.model).item_codec
    vector = codec.encode(codec.decode(written.items[:1]) + 1.0)

    async def push(rows: list[int], factors: list[float]) -> None:
        vectors, some = np.repeat(vector, len(rows), axis=0), np.array(rows, np.int32)
        table = np.repeat(np.array(factors, np.float32)[:, None], rank, axis=1)
        await store.generations.push_delta(lease, 1, number, some, vectors, factors=table)

    await push([2], [0.25])
    async with following(store, tmp_path) as follower, following(store, tmp_path, "v") as other:
        await until_served(store, written, follower, other)
        np.testing.assert_array_equal(live_of(follower).items[2], vector[0])
        np.testing.assert_array_equal(head_of(follower).items[2], np.full(rank, 0.25))
        rows, last = [1, 9, capacity_of(8) + 5], capacity_of(8) + 6
        await push(rows, [0.5, np.nan, 0.75])
        for each in (follower, other):
            await wait_until_async(lambda each=each: live_of(each).n_items == last, "the table grows")  # type: ignore[misc]
            live = live_of(each)
            np.testing.assert_array_equal(live.items[rows], np.repeat(vector, 3, axis=0))
            np.testing.assert_array_equal(live.items[8], live.posterior.prior_item)
            assert len(live.items) == live.n_items == live.ranker.n_items == len(head_of(each).items)
            assert head_of(each).items[rows, 0].tolist() == [0.5, 0.0, 0.75]
    # The files that workers share are as they were published.
    (path,), (ranking,) = files(tmp_path), files(tmp_path, "*.ranking")
    assert path.read_bytes()[: written.items.nbytes] == written.items.tobytes()
    assert ranking.read_bytes() == head_to_bytes(head)


async def test_a_worker_that_is_late_reads_nothing_that_lacks_what_others_wrote(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It polls all along, and does not get the next history loaded: it is not waited for in the end."""
    lease = await lead(store)
    await publish(store, lease)
    await store.ratings.append([rating("ann", "item-0")])
    loads, switch = GenerationLoader.load, Epochs._switch
    late, finishing = asyncio.Event(), asyncio.Event()

    async def load(loader: GenerationLoader, epoch: int, generation: int) -> LiveGeneration:
        if epoch > 1:
            await late.wait()
        return await loads(loader, epoch, generation)

    async def switched(epochs: Epochs, changes: dict[int, tuple[bytes, bytes]]) -> int:
        done = await switch(epochs, changes)
        if finishing.is_set():
            await rate_and_read()
        return done

    monkeypatch.setattr(GenerationLoader, "load", load)
    monkeypatch.setattr("featurestore.ratings.epochs.HANDOVER_S", 0.0)
    monkeypatch.setattr(Epochs, "_switch", switched)

    async def passed(seconds: float) -> None:
        # For so long the change waits, in which a worker that polls hears of it.
        assert seconds == FOLLOWED_S
        await wait_until_async(lambda: follower.live is None, "it is told to serve nothing")

    monkeypatch.setattr("featurestore.ratings.epochs.asyncio", SimpleNamespace(sleep=passed))
    async with opened(store.settings) as worker, following(worker, tmp_path) as follower:
        await wait_until_async(lambda: follower.live is not None, "it serves")
        old = live_of(follower)

        async def rate_and_read() -> None:
            # Acknowledged, in the next history alone; the one before has not been ended yet.
            await store.ratings.append([rating("ann", "item-1")])
            for read in worker.users.history(1, b"ann"), worker.users.lookup(old, [b"ann"]):
                with pytest.raises(StoreUnavailable, match="taken over"):
                    await read
            assert follower.live is None

        epoch = await store.epochs.begin()
        await publish(store, lease, epoch=epoch)
        finishing.set()
        await store.epochs.finish(epoch)
        late.set()
        await wait_until_async(lambda: follower.live is not None, "it serves again")
        assert len((await worker.users.history(epoch, b"ann"))[1].rating) == 1


async def test_a_worker_that_has_not_heard_which_history_is_live_reads_nothing(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = await publish(store, await lead(store))
    await store.ratings.append([rating("ann", "item-0")])
    async with following(store, tmp_path) as follower:
        await until_served(store, written, follower)
        live = live_of(follower)
    users = store.users

    def reads() -> list[Awaitable[object]]:
        return [users.history(1, b"ann"), users.lookup(live, [b"ann"]), users.profile(live, b"ann")]

    users.followed_at = float("inf")
    for read in reads():
        await read
    monkeypatch.setattr("featurestore.users.records.FOLLOWED_S", FOLLOWED_S)
    users.followed_at = time.monotonic() - FOLLOWED_S - 0.1
    for read in reads():
        with pytest.raises(StoreUnavailable, match="not heard"):
            await read


async def test_a_generation_that_is_broken_is_not_served(store: Store, tmp_path: Path) -> None:
    lease = await lead(store)
    good = await publish(store, lease)
    async with following(store, tmp_path) as follower:
        await until_served(store, good, follower)
        bad = await publish(store, lease, seed=1)
        await wait_until_async(lambda: live_of(follower).generation == bad.writer.number, "it was good")
        await store.generations.activate(good.writer.number, hold=False)
        await until_served(store, good, follower)
        chunk = store.keys.chunk(1, bad.writer.number, 0)
        await store.redis.setrange(chunk, 0, b"\xff")
        for path in files(tmp_path, f"*.g{bad.writer.number}.*"):
            path.unlink()
        failures = follower.failures_total
        await store.generations.activate(bad.writer.number, hold=False)
        await wait_until_async(lambda: follower.failures_total > failures, "the checksum is noticed")
        assert live_of(follower).generation == good.writer.number
        assert not files(tmp_path, f"*.g{bad.writer.number}.*")


async def test_merged_deltas_keep_the_factors(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("featurestore.generations.catalog.DELTAS_MERGED", 3)
    lease = await lead(store)
    head = make_head(N_ITEMS)
    written = await publish(store, lease, head=head)
    number, rank = written.writer.number, head.parameters.rank
    await store.generations.claim_deltas(lease, 1, number)
    for row in range(6):
        factors = np.full((1, rank), float(row), np.float32)
        rows, vectors = np.array([row], np.int32), written.items[:1]
        positives = np.array([[0.5, row, 2]], np.float32) if row % 2 else None
        more = {"levels": np.array([row + 0.5], np.float32), "factors": factors, "positives": positives}
        await store.generations.push_delta(lease, 1, number, rows, vectors, **more)
    assert await store.redis.xlen(store.keys.deltas(1, number)) < 6
    found = await store.generations.read_deltas(1, number, written.model.item_width, rank=rank)
    assert (found.ranked.tolist(), found.factors[:, 0].tolist()) == ([0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5])
    assert (found.rated.tolist(), found.levels[:, 0].tolist()) == (
        [*range(6)],
        [row + 0.5 for row in range(6)],
    )
    assert found.counted.tolist() == [1, 3, 5]
    assert found.positives.tolist() == [[0.5, row, 2] for row in (1, 3, 5)]
