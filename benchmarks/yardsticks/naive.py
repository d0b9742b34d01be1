"""What a user would write in an afternoon: aiohttp, redis.asyncio, one GET a pair gathered, JSON all the way.

Invariant: it answers the same question as POST /predict with a point estimate; it is given every advantage
that is usual (uvloop, hiredis, a bounded pool of connections, item vectors in memory) and none that is not.
"""

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence

import numpy as np
import redis.asyncio as redis
import uvloop
from aiohttp import web

from benchmarks.data.synthetic import Generation
from factors.engine_api import vector_columns

# The default of redis-py's blocking pool.
CONNECTIONS = 50
# Keys a command: some megabytes of JSON.
BATCH = 5_000


async def load(url: str, generation: Generation) -> None:
    """Write user and item vectors as JSON, the usual way."""
    columns = vector_columns(generation.model.rank)
    client = redis.Redis.from_url(url, socket_timeout=60)
    try:
        for kind, table in (("user", generation.users), ("item", generation.items)):
            for start in range(0, len(table), BATCH):
                vectors = table[start : start + BATCH, columns].tolist()
                await client.mset(
                    {f"naive:{kind}:{start + i}": json.dumps(vector) for i, vector in enumerate(vectors)}
                )
    finally:
        await client.aclose()


class Predictor:
    """The handler and what it needs."""

    def __init__(self, client: "redis.Redis", items: dict[str, np.ndarray]) -> None:
        self._client = client
        self._items = items

    async def predict(self, request: web.Request) -> web.Response:
        """Answer POST /predict with {"pairs": [[user, item], ...]}."""
        pairs = (await request.json())["pairs"]
        texts = await asyncio.gather(*(self._client.get(f"naive:user:{user}") for user, _ in pairs))
        predictions = []
        for (_, item), text in zip(pairs, texts, strict=True):
            rating = float(np.dot(np.array(json.loads(text or "null")), self._items[item]))
            predictions.append({"rating": rating, "basis": "user+item"})
        return web.json_response({"predictions": predictions})


async def serve(port: int, url: str, n_items: int) -> None:
    """Serve until the process is ended."""
    # Without a bound, 10,000 gathered calls would open 10,000 connections.
    pool = redis.BlockingConnectionPool.from_url(
        url, max_connections=CONNECTIONS, timeout=60, socket_timeout=60
    )
    client = redis.Redis(connection_pool=pool)
    items: dict[str, np.ndarray] = {}
    for start in range(0, n_items, BATCH):
        names = [str(item) for item in range(start, min(start + BATCH, n_items))]
        texts = await client.mget([f"naive:item:{name}" for name in names])
        items.update(
            (name, np.array(json.loads(text or "null"))) for name, text in zip(names, texts, strict=True)
        )
    application = web.Application(client_max_size=16 * 2**20)
    application.router.add_post("/predict", Predictor(client, items).predict)
    application.router.add_get("/livez", _alive)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    await asyncio.Event().wait()


async def _alive(_: web.Request) -> web.Response:
    return web.Response()


def main(argv: Sequence[str]) -> int:
    """Be the process that the benchmark starts."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.yardsticks.naive")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--store", required=True)
    parser.add_argument("--items", type=int, required=True)
    options = parser.parse_args(argv)
    uvloop.run(serve(options.port, options.store, options.items))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
