"""What was removed from a stream is not in the files of the store, once the stream is renewed. Its readers
notice nothing.
"""

import asyncio

from featurestore.commands import Outcome
from featurestore.keys import partition_of
from featurestore.store import Store
from tests.support.factories import lead, rating
from tests.support.waiting import wait_until_async

SECRET = b"a user with a long id, erased"


async def dumped(store: Store, key: bytes) -> bytes:
    """A key as the store writes it to its files."""
    # What is compressed does not have its bytes.
    await store.redis.config_set("rdbcompression", "no")
    content = await store.redis.dump(key)
    assert content is not None
    return bytes(content)


async def test_nothing_of_removed_events_is_left_and_reading_goes_on(store: Store) -> None:
    lease, partition = await lead(store), partition_of(SECRET, 4)
    stream = store.keys.ratings(1, partition)
    others = [user for user in (f"u{k}" for k in range(100)) if partition_of(user.encode(), 4) == partition]
    await store.ratings.append([rating(SECRET.decode(), "i1")])
    await store.ratings.append([rating(others[0], "i1")])
    events = await store.stream.read(1, lease, 100, 0)
    assert events.users == [SECRET, others[0].encode()]
    await store.stream.done(1, lease, {partition: (int(events.stream_ms[0]), 1)})
    # The reason for all this: it was removed, and is there.
    assert SECRET in await dumped(store, stream)

    async def blocked() -> bool:
        return int((await store.redis.info("clients"))["blocked_clients"]) > 0

    reading = asyncio.create_task(store.stream.read(1, lease, 100, 60_000))
    await wait_until_async(blocked, "the read blocks")
    assert await store.files.renew_streams([1])
    assert SECRET not in await dumped(store, stream)
    assert not reading.done()
    await store.ratings.append([rating(others[1], "i1")])
    assert (await reading).users == [others[1].encode()]
    # What is not archived comes again to the next leader, and nothing else.
    left = [user async for events in store.stream.rest(1, {}, 100) for user in events.users]
    assert left == [others[0].encode(), others[1].encode()]
    await lease.release()
    events = await store.stream.read(1, await lead(store, "next"), 100, 0)
    assert events.users == left


async def test_a_command_to_erase_leaves_and_its_receipt_stays(store: Store) -> None:
    lease = await lead(store)
    first = await store.commands.ask("refit", epoch=1)
    erase = await store.commands.ask("erase", epoch=1, user=SECRET, at_ms=5)
    assert await store.commands.stage(erase) == "asked"
    assert await store.commands.erasing() == []
    command = (await store.commands.take("0", 0))[1]
    assert (command.user, command.at_ms) == (SECRET, 5)
    for _ in range(2):
        await store.commands.drop_erasure(lease, command)
    assert await store.commands.stage(erase) == "files"
    assert [(each.id, each.user) for each in await store.commands.erasing()] == [(erase, None)]
    assert SECRET not in await dumped(store, store.keys.erasing)
    assert SECRET in await dumped(store, store.keys.commands)
    assert await store.files.renew_streams([1])
    assert SECRET not in await dumped(store, store.keys.commands)
    assert [each.id for each in await store.commands.take("0", 0)] == [first]
    last = await store.commands.ask("refit", epoch=1)
    assert [each.id for each in await store.commands.take(command.stream_id, 0)] == [last]
    await store.commands.report(lease, erase, Outcome("running"))
    assert await store.commands.stage(erase) == "files"
    await store.commands.report(lease, erase, Outcome("done"))
    assert await store.commands.stage(erase) is None
    assert await store.commands.outcome(erase) == Outcome("done")
