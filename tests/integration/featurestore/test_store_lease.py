"""The lease, the stream and the commands: what the trainers of a namespace share."""

import asyncio
import re
from typing import Any

import numpy as np
import pytest

from featurestore.codecs import FORGOTTEN_ROW
from featurestore.commands import Outcome
from featurestore.errors import EpochGone, LeaseLost, StoreDamaged, StoreError, StoreUnavailable
from featurestore.keys import partition_of
from featurestore.leases import Lease
from featurestore.store import Store
from tests.support.factories import (
    lead,
    make_draft,
    make_items,
    make_model,
    publish,
    rating,
    write_generation,
)
from tests.support.servers import StoreServer
from tests.support.waiting import wait_until_async


async def test_one_leads_and_the_next_has_a_higher_fence(store: Store) -> None:
    first = await lead(store, "one")
    assert await store.leases.acquire("two", 60_000) is None
    again = await lead(store, "one")
    assert again.fence == first.fence
    await first.release()
    second = await lead(store, "two")
    assert second.fence > first.fence
    with pytest.raises(LeaseLost):
        await first.renew()
    await first.release()
    await second.renew()


async def test_an_expired_lease_goes_on_unless_it_was_taken(store: Store) -> None:
    first = await lead(store, "one", ttl_ms=30)

    async def expired() -> bool:
        return not await store.redis.exists(store.keys.lease)

    await wait_until_async(expired, "the lease expires")
    await first.renew()
    await wait_until_async(expired, "the lease expires again")
    second = await lead(store, "two")
    with pytest.raises(LeaseLost):
        await first.renew()
    assert second.fence == first.fence + 1


async def test_a_leader_that_was_replaced_changes_nothing(store: Store) -> None:
    first = await lead(store, "one")
    model = make_model()
    writer = await store.generations.begin(first, make_draft(model), {0: "1-1"})
    await writer.write_items(make_items(model, 2), model)
    await writer.finish()
    await first.release()
    second = await lead(store, "two")
    with pytest.raises(LeaseLost):
        await writer.finish()
    live = await publish(store, second)
    older = await write_generation(store, second)
    number, rows = live.writer.number, np.zeros(1, dtype=np.int32)
    await store.generations.claim_deltas(second, 1, number)
    command = await store.commands.ask("refit", epoch=1)
    await store.commands.report(second, command, Outcome("done", generation=number))
    epoch = await store.epochs.begin()
    before = await everything(store)
    for attempt in (
        writer.flip,
        lambda: writer.write_items(make_items(model, 2), model),
        lambda: store.generations.begin(first, make_draft(model), {0: "1-1"}),
        lambda: store.generations.prune(first),
        lambda: store.generations.remove(1, older.writer.number, lease=first),
        lambda: store.generations.remove_epoch(7, lease=first),
        lambda: store.generations.claim_deltas(first, 1, number),
        lambda: store.generations.push_delta(first, 1, number, rows, live.items[:1]),
        lambda: store.epochs.abandon(epoch, lease=first),
        lambda: store.commands.report(first, command, Outcome("running")),
        lambda: store.room.say(first, "archive_disk", 1e9),
    ):
        with pytest.raises(LeaseLost):
            await attempt()
    assert await everything(store) == before
    # The same calls by the one that leads: none of them was refused for another reason.
    await store.generations.push_delta(second, 1, number, rows, live.items[:1])
    await store.generations.prune(second)
    await store.epochs.abandon(epoch, lease=second)
    assert [each.generation for each in await store.generations.list()] == [number]


async def everything(store: Store) -> dict[bytes, object]:
    """All keys of the namespace, each as the store would write it to a file."""
    keys = sorted([key async for key in store.redis.scan_iter() if store.settings.namespace.encode() in key])
    return {key: await store.redis.dump(key) for key in keys}


async def test_events_come_once_and_go_when_they_are_done(store: Store) -> None:
    lease = await lead(store)
    for n in range(40):
        await store.ratings.append([rating(f"u{n}", "a")])
    seen: list[bytes] = []
    while events := await store.stream.read(1, lease, 3, 0):
        seen += events.user_id
        assert max([list(events.partition).count(p) for p in range(4)]) <= 3
        await store.stream.done(1, lease, events.last)
        await store.stream.done(1, lease, events.last)
    assert sorted(seen) == sorted([b"u%d" % n for n in range(40)])
    assert set((await store.stream.lag(1)).values()) == {0}


async def test_what_was_not_done_comes_again_to_the_next_leader(store: Store) -> None:
    first = await lead(store, "one")
    for n in range(10):
        await store.ratings.append([rating("u", f"i{n}")])
    events = await store.stream.read(1, first, 4, 0)
    await store.stream.done(1, first, events.last)
    assert len(await store.stream.read(1, first, 4, 0)) == 4
    await first.release()
    second = await lead(store, "two")
    other = await Store.open(store.settings)
    again = await other.stream.read(1, second, 100, 0)
    assert again.n.tolist() == [5, 6, 7, 8, 9, 10]
    with pytest.raises(LeaseLost):
        await store.stream.read(1, first, 4, 0)
    with pytest.raises(LeaseLost):
        await store.stream.done(1, first, again.last)
    assert sum((await store.stream.lag(1)).values()) == 6
    await other.close()


async def test_a_call_is_one_entry_a_partition_that_goes_with_its_last_event(store: Store) -> None:
    lease = await lead(store)
    p = partition_of(b"u", store.keys.partitions)
    stream = store.keys.ratings(1, p)
    await store.ratings.append([rating("u", f"i{n}") for n in range(7)])
    assert await store.redis.xlen(stream) == 1
    events = await store.stream.read(1, lease, 3, 0)
    assert events.n.tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert events.stream_seq.tolist() == [1, 2, 3, 4, 5, 6, 7]
    # Part of an entry is archived: only that much is done, and the entry stays.
    await store.stream.done(1, lease, {p: (int(events.stream_ms[3]), 4)})
    assert (await store.stream.lag(1))[p] == 3
    assert await store.redis.xlen(stream) == 1
    await store.stream.done(1, lease, {p: (int(events.stream_ms[1]), 2)})
    assert (await store.stream.lag(1))[p] == 3
    await store.stream.done(1, lease, events.last)
    assert (await store.stream.lag(1))[p] == 0
    assert await store.redis.xlen(stream) == 0
    await store.ratings.append([rating("u", "a"), rating("u", "b")])
    assert (await store.stream.read(1, lease, 3, 0)).stream_seq.tolist() == [8, 9]


async def test_fewer_entries_are_asked_for_where_they_are_large(store: Store) -> None:
    lease = await lead(store)
    for _ in range(40):
        await store.ratings.append([rating("u", "a")] * 50)
    sizes = []
    while events := await store.stream.read(1, lease, 100, 0):
        sizes.append(len(events))
        assert events.more == (len(sizes) < 14)
    assert sizes == [16 * 50, *[100] * 12]


async def test_a_late_leader_does_not_take_the_stream_from_its_successor(store: Store) -> None:
    first = await lead(store, "one")
    await first.release()
    second = await lead(store, "two")
    await store.ratings.append([rating("u", "a")])
    assert len(await store.stream.read(1, second, 100, 0)) == 1
    other = await Store.open(store.settings)
    with pytest.raises(LeaseLost):
        await other.stream.read(1, first, 100, 0)
    await store.stream.done(1, second, {})
    await other.close()


async def test_a_read_waits_for_the_first_event(store: Store) -> None:
    lease = await lead(store)
    assert len(await store.stream.read(1, lease, 10, 20)) == 0
    waiting = asyncio.create_task(store.stream.read(1, lease, 10, 10_000))

    async def blocked() -> bool:
        return int((await store.redis.info("clients"))["blocked_clients"]) > 0

    await wait_until_async(blocked, "the read blocks")
    await store.ratings.append([rating("u", "a")])
    assert (await waiting).user_id == [b"u"]


async def test_a_read_that_was_cut_off_loses_nothing(store: Store) -> None:
    lease = await lead(store)
    await store.ratings.append([rating("u", "a")])
    assert len(await store.stream.read(1, lease, 10, 0)) == 1
    waiting = asyncio.create_task(store.stream.read(1, lease, 10, 10_000))

    async def blocked() -> bool:
        return int((await store.redis.info("clients"))["blocked_clients"]) > 0

    await wait_until_async(blocked, "the read blocks")
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    # Delivered to a reader that is not there any more.
    await store.ratings.append([rating("u", "b"), rating("u", "c")])
    assert (await store.stream.read(1, lease, 10, 0)).n.tolist() == [2, 3]


async def test_forgetting_is_an_event(store: Store) -> None:
    lease = await lead(store)
    await store.ratings.append([rating("u", "a")])
    await store.ratings.forget(b"u")
    events = await store.stream.read(1, lease, 10, 0)
    assert events.item_row.tolist() == [0, FORGOTTEN_ROW]


async def test_a_damaged_event_is_told_and_stays(store: Store) -> None:
    """Left out it would be trimmed with those behind it."""
    lease = await lead(store)
    await store.ratings.append([rating("u", "a")])
    key = store.keys.ratings(1, 0)
    entry = await store.redis.xadd(key, {b"u": b"x", b"e": b"short"})
    assert isinstance(entry, bytes)
    for _ in range(2):
        with pytest.raises(StoreDamaged, match=re.escape(f"{key.decode()}: entry {entry.decode()} ")):
            await store.stream.read(1, lease, 10, 0)
    await store.redis.xdel(key, entry)
    assert len(await store.stream.read(1, lease, 10, 0)) == 1


async def test_an_epoch_that_is_gone_is_not_read(store: Store) -> None:
    lease = await lead(store)
    with pytest.raises(EpochGone):
        await store.stream.read(7, lease, 10, 0)
    assert not await store.redis.exists(store.keys.ratings(7, 0))


async def test_a_store_that_lost_its_groups_makes_the_leader_step_down(store: Store) -> None:
    lease = await lead(store)
    await store.ratings.append([rating("u", "a")])
    assert len(await store.stream.read(1, lease, 10, 0)) == 1
    await store.redis.xgroup_destroy(store.keys.ratings(1, 0), f"trainer-{lease.fence}")
    with pytest.raises(LeaseLost):
        await store.stream.read(1, lease, 10, 0)


async def test_a_command_is_asked_taken_reported_and_dropped(store: Store) -> None:
    lease = await lead(store)
    refit = await store.commands.ask("refit", epoch=1)
    erase = await store.commands.ask("erase", epoch=1, user=b"u")
    taken = await store.commands.take("0", 0)
    assert [(c.id, c.kind, c.epoch, c.user) for c in taken] == [
        (refit, "refit", 1, None),
        (erase, "erase", 1, b"u"),
    ]
    assert await store.commands.outcome(refit) is None
    await store.commands.report(lease, refit, Outcome("running"))
    assert await store.commands.wait(refit, 0.0) == Outcome("running")
    await store.commands.report(lease, refit, Outcome("done", generation=4))
    await store.commands.drop(taken[0].stream_id)
    assert await store.commands.wait(refit, 5.0) == Outcome("done", generation=4)
    assert [c.id for c in await store.commands.take("0", 0)] == [erase]
    assert await store.commands.take(taken[1].stream_id, 10) == []
    assert 0 < await store.redis.ttl(store.keys.command(refit)) <= 3600


async def test_waiting_for_a_command_ends_with_its_outcome(store: Store) -> None:
    command_id = await store.commands.ask("refit", epoch=1)
    waiting = asyncio.create_task(store.commands.wait(command_id, 10.0))
    (taken,) = await store.commands.take("0", 1000)
    await store.commands.report(await lead(store), taken.id, Outcome("failed", code="gate", detail="worse"))
    assert await waiting == Outcome("failed", code="gate", detail="worse")


async def test_an_outcome_that_cannot_be_read_is_an_error(store: Store) -> None:
    await store.redis.set(store.keys.command("x"), b"nonsense")
    with pytest.raises(StoreError):
        await store.commands.outcome("x")


async def test_a_command_of_another_version_comes_as_it_is(store: Store) -> None:
    await store.redis.xadd(store.keys.commands, {b"id": b"x", b"kind": b"dance"})
    (taken,) = await store.commands.take("0", 0)
    assert (taken.kind, taken.id, taken.epoch, taken.damaged) == ("dance", "x", 0, None)


@pytest.mark.parametrize("kind", ["refit", "epoch", "erase", "take_back"])
async def test_a_flipped_byte_of_a_command_is_told_or_is_another_command(store: Store, kind: str) -> None:
    """Any byte of any name or value: what cannot be read names the entry and no user, and hides no other."""
    redis: Any = store.redis
    if kind == "take_back":
        await store.commands.ask_to_take_back(b"secret-item", epoch=1, at_ms=17, ends=[(1, 2)])
    else:
        user = b"secret-user" if kind == "erase" else None
        await store.commands.ask(kind, epoch=1, user=user, at_ms=17)  # type: ignore[arg-type]  # mypy sees a str
    ((entry, fields),) = await redis.xrange(store.keys.commands)
    await redis.xdel(store.keys.commands, entry)
    parts = [part for pair in fields.items() for part in pair]
    damaged = 0
    for at, part in enumerate(parts):
        for place in range(len(part)):
            for bit in (1, 0x80):
                changed = bytearray(part)
                changed[place] ^= bit
                flat = [*parts[:at], bytes(changed), *parts[at + 1 :]]
                await redis.xadd(store.keys.commands, dict(zip(flat[::2], flat[1::2], strict=True)))
    whole = await store.commands.ask("refit", epoch=1)
    taken = await store.commands.take("0", 0)
    assert (taken[-1].id, taken[-1].damaged) == (whole, None)
    for command in taken[:-1]:
        if command.damaged is None:
            assert command.id.isascii()
            assert command.kind != "erase" or command.user
            assert command.kind != "take_back" or command.item
        else:
            damaged += 1
            assert command.stream_id in str(command.damaged)
            assert "commands" in command.damaged.key
            assert "secret" not in str(command.damaged)
    assert damaged > 40


async def test_reading_goes_on_after_the_store_was_away(own_server: StoreServer) -> None:
    from featurestore.settings import StoreSettings

    store = await Store.open(StoreSettings(url=own_server.url, partitions=2, timeout_s=2.0))
    lease: Lease = await lead(store)
    await store.ratings.append([rating("u", "a")])
    assert len(await store.stream.read(1, lease, 10, 0)) == 1
    own_server.kill()
    with pytest.raises(StoreUnavailable):
        await store.stream.read(1, lease, 10, 0)
    own_server.start()

    async def back() -> bool:
        try:
            await store.ratings.append([rating("u", "b")])
        except StoreUnavailable:
            return False
        return True

    await wait_until_async(back, "the store takes ratings again")

    async def read_on() -> list[int]:
        try:
            found: list[int] = (await store.stream.read(1, lease, 10, 100)).n.tolist()
        except StoreUnavailable:
            return []
        return found

    assert await wait_until_async(read_on, "events come again") == [2]
    await store.close()


async def test_the_most_active_users_of_a_leader_that_was_replaced_stay_away(store: Store) -> None:
    users = [b"u%d" % k for k in range(20)]
    await store.ratings.append([rating(user.decode(), "a") for user in users])
    before = await lead(store)
    await store.active.replace(1, users[:10], lease=before)
    await store.redis.delete(store.keys.lease)
    after = await store.leases.acquire("another", 10_000)
    assert after is not None
    await store.active.replace(1, users[10:], lease=after)
    with pytest.raises(LeaseLost):
        await store.active.replace(1, users[:10], lease=before)
    assert sorted(await store.active.ids(1)) == sorted(users[10:])
