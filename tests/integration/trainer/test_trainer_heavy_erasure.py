"""A user with very many ratings is erased to the end. Counted: no more rows at a time than a segment may
have, whatever the user has, each file read a few times, and nothing long on the event loop.
"""

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featurestore import codecs
from featurestore.codecs import History
from featurestore.errors import StreamFull
from featurestore.ratings.batches import Columns
from featurestore.ratings.log import COUNTED_BYTES
from featurestore.settings import StoreSettings
from featurestore.store import Store
from tests.support.factories import low_rank_ratings
from tests.support.recovering import opened
from tests.support.servers import StoreServer
from tests.support.serving import serves, serving
from tests.support.trainers import archived, running_trainer, trainer_settings, until_drained
from tests.support.waiting import wait_until_async
from trainer.archive import epoch_archive, merging, segments

# A million, too: then it takes minutes.
RATINGS = int(os.environ.get("FOLDIN_TEST_HEAVY_RATINGS", "40000"))
ITEMS = min(RATINGS, 50_000)
AT_ONCE = 10_000


async def rate(store: Store, start: int) -> None:
    """Ratings of the one user; beyond `ITEMS` they take the place of earlier ones."""
    rows = np.arange(start, min(start + AT_ONCE, RATINGS))
    items = [b"i%d" % (row % ITEMS) for row in rows.tolist()]
    given = Columns(
        [b"heavy"] * len(rows), items, (1.0 + rows % 5).astype(np.float64), (1e9 + rows).astype(np.float64)
    )

    async def taken() -> bool:
        try:
            await store.ratings.append_columns(given)
        except StreamFull:
            return False
        return True

    await wait_until_async(taken, "there is room in the stream")


def counting(reads: list[int], read: Callable[..., Any]) -> Callable[..., Any]:
    def counted(*args: Any, **options: Any) -> Any:
        rows = read(*args, **options)
        reads.append(rows.count)
        return rows

    return counted


async def test_it_is_erased_to_the_end(
    own_server: StoreServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = StoreSettings(url=own_server.url, namespace="t", partitions=2, timeout_s=10.0)
    settings = trainer_settings(at, tmp_path / "archive", lease_ttl_s=5.0)
    # As if the user had five times as many ratings as a merged segment may; a batch has up to 25,600, and the
    # rest of a call.
    most = max(RATINGS // 5, 25_600 + AT_ONCE)
    monkeypatch.setattr(merging, "MERGED_ROWS", most)
    reads: list[int] = []
    on_loop: list[int] = []
    unpack = codecs.unpack_history

    def unpacked(data: bytes, *args: Any) -> History:
        if threading.current_thread() is threading.main_thread():
            on_loop.append(len(data))
        return unpack(data, *args)

    async with running_trainer(settings), opened(at) as store, serving(at, erase_wait_s=0.1) as (client, _):
        others = low_rank_ratings(users=10, items=12)
        await store.ratings.append(others)
        for start in range(0, RATINGS, AT_ONCE):
            await rate(store, start)
        await until_drained(store)
        await serves(client, 1)
        monkeypatch.setattr(epoch_archive, "open_rows", counting(reads, segments.open_rows))
        monkeypatch.setattr(codecs, "unpack_history", unpacked)
        began = time.monotonic()
        reply = await client.ask("DELETE", "/users/heavy")
        assert (reply.status, reply.json["ratings"]) == (200, ITEMS)
        assert (await client.get("/users/heavy")).status == 404
        receipt = reply.json["receipt"]

        async def erased() -> bool:
            return bool((await client.get(f"/receipts/{receipt}")).json["archive"] == "erased")

        await wait_until_async(erased, "it is erased to the end", timeout_s=300)
        print(f"{RATINGS} ratings in {time.monotonic() - began:.1f} s, {len(reads)} reads")
        left = {user for user, *_ in archived(settings)}
    assert left == {rating.user_id.decode() for rating in others}
    # A merge that runs meanwhile reads some of them, too.
    assert max(reads) <= most
    assert sum(reads) <= 4 * (RATINGS + len(others))
    assert max(on_loop, default=0) <= COUNTED_BYTES
