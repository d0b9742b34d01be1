"""Read-your-writes and whole generations, by two workers, while generations go live one after the other."""

import asyncio
import random
from contextlib import AsyncExitStack

import numpy as np

from factors import Histories
from featurestore.settings import StoreSettings
from featurestore.store import Store
from tests.support.factories import Written, lead, publish_for_ann, write_generation
from tests.support.serving import Client, serves, serving
from tests.support.waiting import wait_until_async

ITEMS, RATERS, FLIPS = 8, 4, 3


def by_hand(written: Written, history: dict[int, float], row: int) -> float:
    """What a generation gives a user with this history."""
    rows = np.array(list(history), dtype=np.int32)
    values = np.array(list(history.values()), dtype=np.float64)
    packed = Histories(np.array([0, len(history)]), rows, values, np.full(len(history), np.nan))
    return written.rating_of(packed, row)


async def test_raters_read_their_writes_while_generations_flip(
    store_settings: StoreSettings, store: Store
) -> None:
    """Each answer is what its own generation gives for exactly the history that was acknowledged."""
    published = await publish_for_ann(store, {"item-0": 5.0}, ITEMS)
    lease, stop = await lead(store), asyncio.Event()
    generations, counts = {published.writer.number: published}, [0] * RATERS

    async def rate_and_ask(number: int, one: Client, other: Client) -> None:
        rng, history, user = random.Random(number), dict[int, float](), f"user-{number}"
        while not stop.is_set():
            row, value = rng.randrange(ITEMS), float(rng.randint(1, 5))
            body = {"user_id": user, "item_id": f"item-{row}", "rating": value}
            assert (await one.post("/ratings", body)).status == 200
            history.pop(row, None)
            history[row] = value
            rows = [rng.randrange(ITEMS) for _ in range(3)]
            answer = (await other.get(f"/predict?user_id={user}&item_id=item-{rows[0]}")).json
            wanted = by_hand(generations[answer["generation"]], history, rows[0])
            assert abs(answer["rating"] - wanted) < 1e-4, (user, answer, wanted)
            # An answer about many pairs is of one generation.
            body = {"user_id": user, "item_ids": [f"item-{each}" for each in rows]}
            many = (await one.post("/predict", body)).json
            for each, asked in zip(many["predictions"], rows, strict=True):
                wanted = by_hand(generations[many["generation"]], history, asked)
                assert abs(each["rating"] - wanted) < 1e-4, (user, many, wanted)
            counts[number] += 1

    async with AsyncExitStack() as ends:
        workers = [(await ends.enter_async_context(serving(store_settings)))[0] for _ in range(2)]
        for worker in workers:
            await serves(worker, published.writer.number)
        raters = [
            asyncio.create_task(rate_and_ask(number, workers[number % 2], workers[1 - number % 2]))
            for number in range(RATERS)
        ]
        try:
            for seed in range(1, FLIPS + 1):
                users = [b"user-%d" % number for number in range(0, RATERS, 2)]
                written = await write_generation(store, lease, n_items=ITEMS, users=users, seed=seed)
                generations[written.writer.number] = written
                assert await written.writer.flip(automatic=False)
                for worker in workers:
                    await serves(worker, written.writer.number)
                least = min(counts)
                await wait_until_async(
                    lambda least=least: min(counts) > least or any(rater.done() for rater in raters),  # type: ignore[misc]  # its default
                    "each goes on",
                )
        finally:
            stop.set()
            await asyncio.gather(*raters)
