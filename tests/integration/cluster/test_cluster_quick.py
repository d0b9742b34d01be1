"""A store on a small cluster does what it does on one server."""

import asyncio
from pathlib import Path

import numpy as np

from featurestore.commands import Outcome
from featurestore.settings import StoreSettings
from featurestore.store import Store
from featurestore.telemetry.servers import look_at_servers, uncovered
from foldin.cluster.__main__ import servers_of
from foldin.cluster.forming import form
from tests.support.factories import as_live, lead, publish, rating
from tests.support.servers import ServerKind
from torture.cluster_set import cluster_set


async def test_what_one_server_does_a_cluster_does(store_kind: ServerKind, tmp_path: Path) -> None:
    with cluster_set(store_kind, tmp_path, 2) as cluster:
        settings = StoreSettings(url=cluster.url, namespace="t", partitions=8, durability="fsync")
        # Formed once more it stays as it is.
        assert await asyncio.to_thread(form, servers_of(settings), 2) == []
        store, other = await Store.open(settings), await Store.open(settings)
        users = [b"u%d" % k for k in range(40)]
        await store.ratings.append([rating(user.decode(), f"i{k % 8}") for k, user in enumerate(users)])
        lease = await lead(store)
        live = as_live(await publish(store, lease, users=users))
        current = await other.users.current(live, [*users, b"unknown"])
        assert current.n.tolist() == [1] * 40 + [0]
        assert not current.folded.any()
        await other.ratings.append([rating("u0", "i1", 5.0)])
        assert (await store.users.current(live, users)).folded.tolist() == [True] + [False] * 39
        assert (await store.ratings.forget(b"u1")).ratings == 1
        everyone = {user async for some in store.user_search.all(1) for user in some}
        assert everyone == {*users} - {b"u1"}
        events = await store.stream.read(1, lease, 1_000, 0)
        assert len(events) == 42
        await store.stream.done(1, lease, events.last)
        epoch = await store.epochs.begin()
        await store.ratings.append([rating("u2", "new", 2.0)])
        await publish(store, lease, epoch=epoch)
        await store.epochs.finish(epoch)
        await store.generations.remove_epoch(1)
        n, history = await other.users.history(epoch, b"u2")
        assert (n, history.rating.tolist()) == (1, [2.0])
        await store.commands.ask("refit", epoch=epoch)
        (command,) = await store.commands.take("0", 0)
        await store.commands.report(lease, command.id, Outcome("done"))
        assert await other.commands.outcome(command.id) == Outcome("done")
        found = await look_at_servers(store.redis)
        assert (len(found), uncovered(found)) == (2, 0)
        assert np.ptp([each.slots for each in found]) <= 1
        await store.close()
        await other.close()
