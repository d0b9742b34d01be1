"""A stand-in for the Foldin API: its contract, a model of means, and a memory of what it was asked."""

import json
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from statistics import fmean
from typing import Any

from aiohttp import web


class FakeApi:
    """`ratings`: (user id, item id) -> rating. `live_ratings`: whether some came in by other ways than
    `POST /train`. `contexts`, `asked_in`: of the ratings that came in those ways, and of the questions.
    """

    def __init__(self) -> None:
        self.ratings: dict[tuple[str, str], float] = {}
        self.contexts: list[dict[str, float] | None] = []
        self.asked_in: list[dict[str, float] | None] = []
        self.live_ratings = False
        self.generation = 0
        self.fitted = 0
        self.trains: list[dict[str, Any] | None] = []
        self.refusals: list[web.Response] = []
        self.answers: list[web.Response] = []

    def refuse(self, status: int, **headers: str) -> None:
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        self.refusals.append(web.Response(status=status, headers=names))

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_post("/train", self._train)
        app.router.add_post("/ratings", self._rate)
        app.router.add_get("/predict", self._predict)
        app.router.add_get("/generations", self._generations)
        return app

    async def _train(self, request: web.Request) -> web.Response:
        if self.refusals:
            return self.refusals.pop(0)
        document = await request.json() if request.can_read_body else None
        self.trains.append(document)
        if document is not None:
            if self.live_ratings and not document.get("replace"):
                return problem(409, "ratings_would_be_lost")
            columns = (document["user_history"], document["item_history"], document["rating_history"])
            assert len(document.keys() - {"replace", "variables_history"}) == 5
            self.ratings = {(str(u), str(i)): float(r) for u, i, r in zip(*columns, strict=True)}
            self.live_ratings = False
        self.generation += 1
        self.fitted = len(self.ratings)
        told = {"epoch": 1, "ratings": self.fitted, "metrics": {}, "served": True}
        return web.json_response({"generation": self.generation, **told})

    async def _rate(self, request: web.Request) -> web.Response:
        if self.refusals:
            return self.refusals.pop(0)
        assert request.content_type == "application/x-ndjson"
        for line in (await request.read()).splitlines():
            row = json.loads(line)
            assert row.keys() - {"context"} == {"user_id", "item_id", "rating"}
            assert isinstance(row["user_id"], str)
            self.ratings[row["user_id"], row["item_id"]] = row["rating"]
            self.contexts.append(row.get("context"))
        self.live_ratings = True
        return web.json_response({"accepted": 1, "generation": 1})

    async def _predict(self, request: web.Request) -> web.Response:
        if self.answers:
            return self.answers.pop(0)
        user, item = request.query["user_id"], request.query["item_id"]
        self.asked_in.append(json.loads(request.query.get("context", "null")))
        of_item = [rating for (_, other), rating in self.ratings.items() if other == item]
        of_user = [rating for (other, _), rating in self.ratings.items() if other == user]
        rating = fmean([*of_item, *of_user, 3.0])
        assert math.isfinite(rating)
        return web.json_response(
            {"rating": rating, "std": 0.6, "basis": "user+item", "generation": self.generation}
        )

    async def _generations(self, _request: web.Request) -> web.Response:
        more = {"epoch": 1, "live": True, "created": 0.0, "rank": 1, "n_users": 1, "n_items": 1}
        names = {"state": "ready", "link": "identity", "engine": "auto", "metrics": {}}
        row = {"generation": self.generation, "n_ratings": self.fitted, **names, **more}
        rows = [row] if self.generation else []
        return web.json_response({"live": self.generation, "epoch": 1, "held": False, "generations": rows})


def problem(status: int, code: str) -> web.Response:
    return web.json_response(
        {"type": "about:blank", "title": code, "status": status, "detail": "no", "code": code},
        status=status,
        content_type="application/problem+json",
    )


@asynccontextmanager
async def serving(app: web.Application) -> AsyncIterator[str]:
    runner = web.AppRunner(app, shutdown_timeout=1.0)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        yield f"http://{host}:{port}"
    finally:
        await runner.cleanup()
