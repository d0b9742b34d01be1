"""The follower: one generation, whole, at any moment; new ones loaded beside; deltas within a poll."""

import asyncio
import fcntl
import threading
import time
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from factors import Float32s, posterior_of
from featurestore.client import StorePipeline
from featurestore.errors import StoreRefused, StoreUnavailable
from featurestore.generations import item_table_file as itemtable
from featurestore.generations.follower import Follower
from featurestore.generations.live import LiveGeneration
from featurestore.generations.loader import GenerationLoader
from featurestore.generations.served import FOLLOWED_S, wait_until_served
from featurestore.id_columns import Ids
from featurestore.migration.stages import CLOSING, COPYING, Stages
from featurestore.ratings.epochs import Epochs
from featurestore.settings import StoreSettings
from featurestore.store import Store
from tests.support.factories import lead, publish, rating
from tests.support.following import following
from tests.support.servers import StoreServer
from tests.support.waiting import wait_until_async


def capacity_of(rows: int) -> int:
    """Rows of the file for a generation of so many items."""
    return int(rows * itemtable.GROWTH) + itemtable.SPARE_ROWS


async def until(condition: Callable[[], bool], what: str) -> None:
    await wait_until_async(condition, what)


def files(folder: Path, pattern: str = "*.items") -> list[Path]:
    return list(folder.glob(pattern))


def contents(path: Path) -> bytes:
    return path.read_bytes()


def replace_contents(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def live_of(follower: Follower) -> LiveGeneration:
    assert follower.live is not None
    return follower.live


@asynccontextmanager
async def frozen(
    store: Store, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[Follower, asyncio.Event]]:
    """A follower that serves, and is frozen between two polls until the event is set."""
    poll, is_frozen, thawed = Follower._poll, asyncio.Event(), asyncio.Event()

    async def held(self: Follower) -> bool:
        if self.live is not None and not thawed.is_set():
            is_frozen.set()
            await thawed.wait()
        return await poll(self)

    monkeypatch.setattr(Follower, "_poll", held)
    async with following(store, folder) as follower:
        try:
            await asyncio.wait_for(is_frozen.wait(), 30)
            yield follower, thawed
        finally:
            thawed.set()


async def test_nothing_is_live_until_something_is_published(store: Store, tmp_path: Path) -> None:
    async with following(store, tmp_path) as follower:
        await until(lambda: follower.pointer is not None, "the pointer is polled")
        assert follower.live is None
        assert not await wait_until_served(store.generations, 1, 1, 0.05, here=follower)
        await store.items(1).register([b"a", b"b"])
        written = await publish(store, await lead(store), n_items=2)
        assert await wait_until_served(store.generations, 1, written.writer.number, 10.0, here=follower)
        live = live_of(follower)
        assert (live.epoch, live.generation, live.n_items) == (1, written.writer.number, 2)
        np.testing.assert_array_equal(live.items, written.items)
        assert live.ranker.n_items == 2


async def test_each_publish_is_followed_and_old_files_go(store: Store, tmp_path: Path) -> None:
    lease = await lead(store)
    async with following(store, tmp_path) as follower:
        for seed in range(4):
            written = await publish(store, lease, n_items=5 + seed, seed=seed)
            assert await wait_until_served(store.generations, 1, written.writer.number, 10.0, here=follower)
            np.testing.assert_array_equal(live_of(follower).items[: 5 + seed], written.items)
        await until(lambda: len(files(tmp_path, "*.items")) <= 3, "files of removed generations go")
        assert follower.loads_total == 4


async def test_rolling_back_is_followed(store: Store, tmp_path: Path) -> None:
    lease = await lead(store)
    first, second = await publish(store, lease), await publish(store, lease, seed=1)
    async with following(store, tmp_path) as follower:
        assert await wait_until_served(store.generations, 1, second.writer.number, 10.0, here=follower)
        before = live_of(follower)
        await store.generations.activate(first.writer.number, hold=True)
        assert await wait_until_served(store.generations, 1, first.writer.number, 10.0, here=follower)
        np.testing.assert_array_equal(live_of(follower).items[:8], first.items)
        # A caller that still holds the one before has it whole.
        np.testing.assert_array_equal(before.items[:8], second.items)


async def test_each_stage_of_a_migration_is_told(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with following(store, tmp_path) as follower:
        await until(lambda: follower.pointer is not None, "the pointer is polled")
        assert "migrate" not in caplog.text
        stages = Stages(store, 1, "token", "redis://two")
        await stages.begin(COPYING)
        await until(lambda: "the store is copying" in caplog.text, "one that is begun is told")
        await stages.go_on(COPYING, CLOSING)
        await until(lambda: "the store is closing" in caplog.text, "one that closes is told")
        await stages.end(own=True)
        await until(lambda: "it was given up" in caplog.text, "the end is told")


async def test_an_unexpected_error_does_not_end_it(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    lease = await lead(store)
    poll, calls = Follower._poll, list[int]()

    async def failing(self: Follower) -> bool:
        calls.append(1)
        if len(calls) in range(3, 6):
            raise ZeroDivisionError("a defect")
        return await poll(self)

    monkeypatch.setattr(Follower, "_poll", failing)
    async with following(store, tmp_path) as follower:
        written = await publish(store, lease)
        number = written.writer.number
        assert await wait_until_served(store.generations, 1, number, 10.0, here=follower)
        await until(lambda: len(calls) > 10, "it polls on")
        assert follower.failures_total == 3
    assert caplog.text.count("ERROR") == 1


async def test_no_row_changes_while_a_thread_reads_it(store: Store, tmp_path: Path) -> None:
    lease = await lead(store)
    written = await publish(store, lease)
    number = written.writer.number
    await store.generations.claim_deltas(lease, 1, number)
    codec = posterior_of(written.model).item_codec
    row, vector = np.array([2], dtype=np.int32), codec.encode(codec.decode(written.items[:1]) + 1.0)
    go_on = threading.Event()
    async with following(store, tmp_path) as follower:
        assert await wait_until_served(store.generations, 1, number, 10.0, here=follower)
        live = live_of(follower)
        began = asyncio.Event()
        loop = asyncio.get_running_loop()

        def read() -> tuple[Float32s, Float32s]:
            first = live.items[2].copy()
            loop.call_soon_threadsafe(began.set)
            assert go_on.wait(20)
            return first, live.items[2].copy()

        reading = asyncio.create_task(live.in_thread(read))
        await began.wait()
        await store.generations.push_delta(lease, 1, number, row, vector)
        # Two polls and more: without the lock the row is another by now.
        await asyncio.sleep(1.0)
        # One that comes while the writer waits reads what is written.
        late = asyncio.create_task(live.in_thread(live.items[2].copy))
        go_on.set()
        before, after = await reading
        np.testing.assert_array_equal(before, after)
        np.testing.assert_array_equal(await late, vector[0])
        await until(lambda: live_of(follower).after != live.after, "the delta is taken")


async def test_deltas_arrive_in_place_and_new_items_grow_the_table(store: Store, tmp_path: Path) -> None:
    lease = await lead(store)
    written = await publish(store, lease)
    number, width = written.writer.number, written.model.item_width
    await store.generations.claim_deltas(lease, 1, number)
    codec = posterior_of(written.model).item_codec
    vector = codec.encode(codec.decode(written.items[:1]) + 1.0)
    await store.generations.push_delta(lease, 1, number, np.array([2], dtype=np.int32), vector)
    async with following(store, tmp_path) as follower, following(store, tmp_path, "v") as other:
        assert await wait_until_served(store.generations, 1, number, 10.0, here=follower)
        assert await wait_until_served(store.generations, 1, number, 10.0, here=other)
        np.testing.assert_array_equal(live_of(follower).items[2], vector[0])
        rows = np.array([1, 9, capacity_of(8) + 5], dtype=np.int32)
        await store.generations.push_delta(lease, 1, number, rows, np.repeat(vector, 3, axis=0))
        await until(lambda: live_of(follower).n_items == capacity_of(8) + 6, "the table grows")
        await until(lambda: live_of(other).n_items == capacity_of(8) + 6, "the other's too")
        live = live_of(follower)
        np.testing.assert_array_equal(live.items[rows], np.repeat(vector, 3, axis=0))
        np.testing.assert_array_equal(live.items[8], live.posterior.prior_item)
        np.testing.assert_array_equal(
            live.items[10:-1], np.repeat(live.posterior.prior_item[None], len(live.items) - 11, 0)
        )
        assert live.scorer.items is live.items
        assert len(live.items) == live.n_items
        assert live.ranker.n_items == live.n_items
        assert width == live.items.shape[1]
    # The file that workers share is as it was published.
    (path,) = files(tmp_path)
    assert contents(path)[: written.items.nbytes] == written.items.tobytes()


async def test_items_that_others_register_become_known(store: Store, tmp_path: Path) -> None:
    other = await Store.open(store.settings)
    written = await publish(store, await lead(store))
    async with following(store, tmp_path) as follower:
        assert await wait_until_served(store.generations, 1, written.writer.number, 10.0, here=follower)
        await other.ratings.append([rating("u", f"i{n}") for n in range(3_000)])
        await until(lambda: len(store.items(1)) == 3_000, "the registry follows")
        assert store.items(1).id(2_999) == "i2999"
    await other.close()


@pytest.mark.slow
async def test_a_worker_that_missed_the_end_of_its_history_reads_nothing_of_it(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = await lead(store)
    await publish(store, lease)
    await store.ratings.append([rating("ann", "item-0")])
    worker = await Store.open(store.settings)
    async with frozen(worker, tmp_path, monkeypatch) as (follower, thawed):
        assert (await worker.users.history(1, b"ann"))[0] == 1
        epoch = await store.epochs.begin()
        await publish(store, lease, epoch=epoch)
        await store.epochs.finish(epoch)
        await store.ratings.append([rating("ann", "item-1")])
        old = live_of(follower)
        assert old.epoch == 1
        await until(lambda: time.monotonic() > worker.users.followed_at + FOLLOWED_S, "it was not followed")
        # It is not waited for any more: what it would answer lacks the second rating.
        for read in (
            worker.users.history(1, b"ann"),
            worker.users.lookup(old, [b"ann"]),
            worker.users.current_distinct(old, Ids.of([b"%d" % user for user in range(1_000)])),
            worker.users.profile(old, b"ann"),
        ):
            with pytest.raises(StoreUnavailable, match="not heard"):
                await read
        thawed.set()
        await until(lambda: follower.live is not old, "it polls")
        await until(lambda: follower.live is not None, "it serves again")
        assert live_of(follower).epoch == epoch
        assert len((await worker.users.history(epoch, b"ann"))[1].rating) == 1
    await worker.close()


@pytest.mark.slow
async def test_a_history_that_has_ended_is_not_served_while_the_next_but_one_begins(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = await lead(store)
    await publish(store, lease)
    loads = GenerationLoader.load

    async def load(loader: GenerationLoader, epoch: int, generation: int) -> LiveGeneration:
        if epoch > 1:
            raise StoreUnavailable("frozen amid a load, it was cut off", 0.1)
        return await loads(loader, epoch, generation)

    monkeypatch.setattr(GenerationLoader, "load", load)
    async with frozen(store, tmp_path, monkeypatch) as (follower, thawed):
        epoch = await store.epochs.begin()
        await publish(store, lease, epoch=epoch)
        await store.epochs.finish(epoch)
        third = await store.epochs.begin()
        assert live_of(follower).epoch == 1
        thawed.set()
        await until(lambda: follower.pointer is not None and follower.pointer.pending == third, "it polls")
        assert follower.live is None


async def test_a_worker_that_is_late_reads_nothing_that_lacks_what_others_wrote(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It polls all along, and does not get the next history loaded: it is not waited for in the end."""
    lease = await lead(store)
    await publish(store, lease)
    await store.ratings.append([rating("ann", "item-0")])
    worker = await Store.open(store.settings)
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
    monkeypatch.setattr("featurestore.ratings.epochs.HANDOVER_S", 0.2)
    monkeypatch.setattr(Epochs, "_switch", switched)
    async with following(worker, tmp_path) as follower:
        await until(lambda: follower.live is not None, "it serves")
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
        await until(lambda: follower.live is not None, "it serves again")
        assert len((await worker.users.history(epoch, b"ann"))[1].rating) == 1
    await worker.close()


async def test_what_a_late_reply_tells_is_as_old_as_its_question(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await publish(store, await lead(store))
    async with following(store, tmp_path) as follower:
        await until(lambda: follower.live is not None, "it serves")
        execute = StorePipeline.execute

        async def late(pipe: StorePipeline, spared: int | None = None) -> list[Any]:
            replies = await execute(pipe, spared=spared)
            await asyncio.sleep(0.4)
            return replies

        monkeypatch.setattr(StorePipeline, "execute", late)
        before = store.users.followed_at
        await until(lambda: store.users.followed_at != before, "a poll under way ends")
        before = store.users.followed_at
        await until(lambda: store.users.followed_at != before, "one more ends")
        assert time.monotonic() - store.users.followed_at >= 0.4


async def test_workers_of_a_host_write_the_file_once(store: Store, tmp_path: Path) -> None:
    other = await Store.open(store.settings)
    written = await publish(store, await lead(store), n_items=3_000)
    async with following(store, tmp_path, "a") as a, following(other, tmp_path, "b") as b:
        assert await wait_until_served(store.generations, 1, written.writer.number, 10.0, here=a)
        assert await wait_until_served(store.generations, 1, written.writer.number, 10.0, here=b)
        (path,) = files(tmp_path)
        assert len(contents(path)) == 4 * capacity_of(3_000) * written.model.item_width
        assert {worker.id for worker in await store.generations.workers()} >= {"a", "b"}
        assert not files(tmp_path, ".*.part")
    # Who stops in order is not waited for.
    assert await store.generations.workers() == []
    await other.close()


async def test_a_worker_waits_for_the_one_that_is_writing(store: Store, tmp_path: Path) -> None:
    written = await publish(store, await lead(store))
    with (tmp_path / f".{store.settings.namespace}.lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        async with following(store, tmp_path) as follower:
            await until(lambda: follower.polled_at > 0, "polls go on")
            assert not await wait_until_served(
                store.generations, 1, written.writer.number, 0.2, here=follower
            )
            fcntl.flock(lock, fcntl.LOCK_UN)
            assert await wait_until_served(store.generations, 1, written.writer.number, 10.0, here=follower)


async def test_a_damaged_file_is_written_again(store: Store, tmp_path: Path) -> None:
    written = await publish(store, await lead(store))
    async with following(store, tmp_path) as follower:
        assert await wait_until_served(store.generations, 1, written.writer.number, 10.0, here=follower)
    (path,) = files(tmp_path)
    data = bytearray(contents(path))
    data[5] ^= 1
    replace_contents(path, bytes(data))
    async with following(store, tmp_path) as follower:
        assert await wait_until_served(store.generations, 1, written.writer.number, 10.0, here=follower)
        np.testing.assert_array_equal(live_of(follower).items[:8], written.items)


async def test_a_generation_that_is_broken_is_not_served(store: Store, tmp_path: Path) -> None:
    lease = await lead(store)
    good = await publish(store, lease)
    async with following(store, tmp_path) as follower:
        assert await wait_until_served(store.generations, 1, good.writer.number, 10.0, here=follower)
        bad = await publish(store, lease, seed=1)
        await until(lambda: live_of(follower).generation == bad.writer.number, "it was good so far")
        await store.generations.activate(good.writer.number, hold=False)
        assert await wait_until_served(store.generations, 1, good.writer.number, 10.0, here=follower)
        chunk = store.keys.chunk(1, bad.writer.number, 0)
        await store.redis.setrange(chunk, 0, b"\xff")
        for path in files(tmp_path, f"*.g{bad.writer.number}.*"):
            path.unlink()
        failures = follower.failures_total
        await store.generations.activate(bad.writer.number, hold=False)
        await until(lambda: follower.failures_total > failures, "the checksum is noticed")
        assert live_of(follower).generation == good.writer.number
        assert not files(tmp_path, f"*.g{bad.writer.number}.*")


async def test_a_folder_that_cannot_be_written_is_refused(store: Store, tmp_path: Path) -> None:
    file = tmp_path / "file"
    replace_contents(file, b"")
    with pytest.raises(StoreRefused, match="FOLDIN_CACHE_DIR"):
        Follower(store, file / "below", "w")


async def test_while_the_store_is_away_the_old_one_serves(own_server: StoreServer, tmp_path: Path) -> None:
    store = await Store.open(StoreSettings(url=own_server.url, timeout_s=2.0))
    lease = await lead(store)
    first = await publish(store, lease)
    async with following(store, tmp_path / "cache") as follower:
        assert await wait_until_served(store.generations, 1, first.writer.number, 10.0, here=follower)
        own_server.kill()
        failures = follower.failures_total
        await until(lambda: follower.failures_total > failures, "the outage is noticed")
        np.testing.assert_array_equal(live_of(follower).items[:8], first.items)
        own_server.start()
        await wait_until_async(lambda: store.bulk.connected, "the connection is back")
        second = await publish(store, lease, seed=1)
        assert await wait_until_served(store.generations, 1, second.writer.number, 10.0, here=follower)
    await store.close()


async def test_a_new_epoch_is_finished_only_when_every_worker_serves_it(store: Store, tmp_path: Path) -> None:
    lease = await lead(store)
    first = await publish(store, lease)
    async with following(store, tmp_path) as follower:
        assert await wait_until_served(store.generations, 1, first.writer.number, 10.0, here=follower)
        epoch = await store.epochs.begin()
        await publish(store, lease, epoch=epoch)
        await store.epochs.finish(epoch)
        assert live_of(follower).epoch == epoch


async def test_a_large_table_is_read_whole_once_and_again_when_it_changed(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(itemtable, "MARKED_BYTES", 1)
    checked: list[int] = []

    def counted(data: bytes, value: int = 0) -> int:
        checked.append(len(data))
        return zlib.crc32(data, value)

    monkeypatch.setattr(itemtable, "crc32", counted)
    written = await publish(store, await lead(store), n_items=20)

    async def mapped() -> np.ndarray[Any, Any]:
        checked.clear()
        cache = itemtable.TableCache(tmp_path, store.settings.namespace)
        table = await cache.table(written.meta, store.generations.load_items(written.meta))
        np.testing.assert_array_equal(table[:20], written.items)
        return table

    await mapped()
    assert sum(checked) == written.items.nbytes
    table = await mapped()
    assert not checked
    table[0] = 0.0  # private to this process
    await mapped()
    assert not checked
    path = files(tmp_path)[0]
    replace_contents(path, contents(path)[:-4] + b"\0\0\0\0")
    await mapped()
    assert sum(checked) >= written.items.nbytes
    path.unlink()
    itemtable.TableCache(tmp_path, store.settings.namespace).remove_unused([], 0)
    assert files(tmp_path, ".*.checked") == []
