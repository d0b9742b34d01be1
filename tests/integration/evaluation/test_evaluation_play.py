"""Plays and evaluations over HTTP, the deployed player against a stand-in for the API."""

import json
import math
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from statistics import fmean
from typing import Any

import numpy as np
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from environment.server import running_server
from environment.settings import ServerSettings
from environment.world import WorldOptions
from evaluation.course.play import play
from evaluation.course.playboard import Progress
from evaluation.course.protocol import Moment, evaluate
from evaluation.course.seat import MISSING_ERROR
from evaluation.course.settings import EvaluationSettings, PlaySettings
from evaluation.players import PlayerFailedError
from processes.probes import unused_port
from processes.settings import SettingsError


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


WORLD = WorldOptions(n_users=15, n_items=20)
SMALL = replace(WORLD, n_known=120)


@pytest.fixture
async def environment() -> AsyncIterator[str]:
    async with running_server(ServerSettings(port=0, world=SMALL)) as address:
        yield address


@pytest.fixture
async def api() -> AsyncIterator[tuple[FakeApi, str]]:
    fake = FakeApi()
    async with TestServer(fake.app()) as server:
        yield fake, f"http://127.0.0.1:{server.port}"


async def played(settings: PlaySettings) -> list[Progress]:
    settings = replace(settings, answer_timeout_s=60.0)
    async with aclosing(play(settings)) as reports:
        return [report async for report in reports]


async def test_all_players_face_the_same_pairs_and_progress_is_reported(environment: str) -> None:
    players = ("constant", "constant", "bias")
    settings = PlaySettings(environment=environment, players=players, steps=50, report_every=20, seed=4)
    reports = await played(settings)
    assert [report.step for report in reports] == [0, 20, 40, 50]
    last = reports[-1]
    assert last.same_world
    assert last.known == 120
    first, second, _ = last.standings
    assert np.array_equal(first.tally.squared_error, second.tally.squared_error)
    again = (await played(settings))[-1]
    assert [each.tally.mse for each in again.standings] == [each.tally.mse for each in last.standings]


async def test_a_fresh_api_is_trained_and_then_learns(environment: str, api: tuple[FakeApi, str]) -> None:
    fake, address = api
    players = ("constant", "deployed")
    settings = PlaySettings(environment=environment, api=address, players=players, steps=40, seed=4)
    last = (await played(settings))[-1]
    assert len(fake.trains) == 1
    document = fake.trains[0]
    assert document is not None
    assert set(document) == {"nb_users", "nb_items", "user_history", "item_history", "rating_history"}
    assert len(document["rating_history"]) == 120
    assert len(fake.ratings) == 160
    assert all(user.isdigit() and item.isdigit() for user, item in fake.ratings)
    deployed = last.standings[1]
    assert deployed.note == ""
    assert deployed.tally.missing == 0
    assert deployed.tally.mse < last.standings[0].tally.mse


@pytest.mark.parametrize("live", [False, True])
async def test_ratings_of_others_are_kept(environment: str, api: tuple[FakeApi, str], live: bool) -> None:
    """Also those that came by a `POST /train`, which another one would replace without asking."""
    fake, address = api
    fake.ratings, fake.live_ratings, fake.generation, fake.fitted = {("ann", "film"): 4.0}, live, 1, 1
    settings = PlaySettings(environment=environment, api=address, players=("deployed",), steps=3)
    await played(settings)
    assert fake.ratings["ann", "film"] == 4.0
    assert len(fake.ratings) == 1 + 123
    await played(replace(settings, replace=True))
    assert ("ann", "film") not in fake.ratings
    assert len(fake.ratings) == 123


async def test_a_busy_api_is_waited_for_a_refusal_ends_it(environment: str, api: tuple[FakeApi, str]) -> None:
    fake, address = api
    for status in (503, 429, 502):
        fake.refuse(status, Retry_After="0")
    fake.refusals.append(problem(409, "train_in_progress"))
    settings = PlaySettings(environment=environment, api=address, players=("deployed",), steps=1)
    assert (await played(settings))[-1].standings[0].tally.missing == 0
    assert len(fake.trains) == 1
    fake.refuse(422)
    with pytest.raises(PlayerFailedError, match="422"):
        await played(settings)


async def test_a_missing_answer_counts_a_thousand(environment: str, api: tuple[FakeApi, str]) -> None:
    fake, address = api
    fake.answers = [
        problem(503, "unavailable"),
        web.Response(text="{}"),
        web.json_response({"rating": None}),
        web.Response(text='{"rating": 1e999, "std": 1, "basis": "user", "generation": 1}'),
    ]
    settings = PlaySettings(environment=environment, api=address, players=("deployed",), steps=6)
    last = (await played(settings))[-1]
    tally = last.standings[0].tally
    assert tally.squared_error[:4].tolist() == [MISSING_ERROR] * 4
    assert tally.missing == 4
    assert tally.squared_error[4:].max() < 25
    assert last.standings[0].note.startswith("last missing answer")


async def test_variables_go_along_but_for_a_player_that_is_blind(api: tuple[FakeApi, str]) -> None:
    fake, address = api
    settings = ServerSettings(port=0, world=replace(SMALL, n_variables=2))
    async with running_server(settings) as environment:
        for player in ("deployed", "deployed-blind"):
            how = PlaySettings(environment=environment, api=address, players=(player,), steps=3, replace=True)
            await played(how)
    told = [sorted(each or ()) for each in (*fake.asked_in, *fake.contexts)]
    assert told == [*[["v1", "v2"]] * 3, *[[]] * 3] * 2


async def test_an_evaluation_starts_its_own_environment_and_repeats_by_seed() -> None:
    moments: list[Moment] = []
    players, known = ("constant", "als"), (40, 120)
    settings = EvaluationSettings(players=players, steps=30, runs=2, known=known, seed=5, world=WORLD)
    report = await evaluate(settings, moments.append)
    assert report.same_worlds
    assert len(report.results) == 8
    found = [(summary.known, summary.player) for summary in report.summaries()]
    assert found == [(40, "constant"), (40, "als"), (120, "constant"), (120, "als")]
    assert len(moments) == 8
    again = await evaluate(settings)
    assert [s.run_mse for s in again.summaries()] == [s.run_mse for s in report.summaries()]
    few, many = (summary for summary in report.summaries() if summary.player == "constant")
    assert few.run_mse == many.run_mse
    assert few.run_mse[0] != few.run_mse[1]


async def test_a_player_that_is_not_there_is_refused_with_what_to_do() -> None:
    settings = EvaluationSettings(players=("ordinal",), steps=5, runs=1, known=(50,), world=WORLD)
    with pytest.raises(SettingsError, match="foldin evaluate"):
        await evaluate(settings)


async def test_an_evaluation_of_an_api_that_does_not_answer_does_not_play() -> None:
    with pytest.raises(SettingsError, match="foldin up"):
        await evaluate(EvaluationSettings(api=f"http://127.0.0.1:{unused_port()}"))
