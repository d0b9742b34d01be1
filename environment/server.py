"""The environment over HTTP, as the lecture has it: `GET /`, `/reset`, `/predict`; besides `/livez`.

The answers carry exactly the lecture's keys, all of them ints but for the variables of an event. Worlds are
drawn and answers to a reset encoded in threads, so that no player waits for another's reset.
"""

import math
import re
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from http import HTTPStatus
from urllib.parse import parse_qsl

import msgspec
from aiohttp import web

from environment.games import Games, NoPairLeftError, UnknownTokenError
from environment.problems import ProblemError, problems_middleware
from environment.settings import MAX_SEED, ServerSettings
from processes.loop import stop_event
from processes.settings import SettingsError

GAMES = web.AppKey("games", Games)
SETTINGS = web.AppKey("settings", ServerSettings)

MAX_TOKEN_BYTES = 256  # as ids of the recommender's API
MAX_PARAMETERS = 16  # three are known; parse_qsl would else split a body-sized query
GRACE_S = 2.0  # what a request in progress is given at the end; the slowest takes a second
DRAWING_THREADS = 2  # numpy lets go of the interpreter's lock in part of the drawing: more gain nothing

# What JSON and Python's str(float) write; not "nan", "1_0" or Arabic digits, which float() would also take.
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)


def make_app(settings: ServerSettings) -> web.Application:
    """The environment as an aiohttp application that owns its games and threads."""
    app = web.Application(middlewares=[problems_middleware])
    app[SETTINGS] = settings
    app.cleanup_ctx.append(_games)
    app.router.add_get("/", _hello)
    app.router.add_get("/livez", _livez)
    app.router.add_get("/reset", _reset)
    app.router.add_get("/predict", _predict)
    return app


@asynccontextmanager
async def running_server(settings: ServerSettings) -> AsyncIterator[str]:
    """Serve on this event loop within the block; yield the address. Raises SettingsError when it cannot
    listen.
    """
    runner = web.AppRunner(make_app(settings), access_log=None, shutdown_timeout=GRACE_S)
    await runner.setup()
    try:
        site = web.TCPSite(runner, settings.host, settings.port)
        try:
            await site.start()
        except (OSError, UnicodeError) as error:  # the second: a name that no host can have
            reason = getattr(error, "strerror", None) or str(error)
            raise SettingsError(
                f"cannot listen on {settings.host}:{settings.port} ({reason}): "
                "stop what listens there, or choose another with --port"
            ) from error
        host, port = runner.addresses[0][:2]
        yield f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    finally:
        await runner.cleanup()


async def serve(settings: ServerSettings, started: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT; call `started` with the address once requests are taken."""
    stop = stop_event()
    async with running_server(settings) as address:
        started(address)
        await stop.wait()


async def _games(app: web.Application) -> AsyncIterator[None]:
    settings = app[SETTINGS]
    with ThreadPoolExecutor(DRAWING_THREADS, thread_name_prefix="draw-world") as executor:
        app[GAMES] = Games(
            options=settings.world, seed=settings.seed, max_tokens=settings.max_tokens, executor=executor
        )
        yield


async def _hello(_request: web.Request) -> web.Response:
    return web.Response(text="Hello World!")


async def _livez(request: web.Request) -> web.Response:
    return web.json_response({"status": "ok", "tokens": len(request.app[GAMES])})


async def _reset(request: web.Request) -> web.Response:
    query = _query(request)
    token = _token(query)
    answer = await request.app[GAMES].reset(token, _world_seed(query))
    return web.Response(body=answer, content_type="application/json")


async def _predict(request: web.Request) -> web.Response:
    query = _query(request)
    token = _token(query)
    _predicted_score(query)  # checked, and then left to the player: the environment keeps no score
    try:
        answer = await request.app[GAMES].rate(token)
    except UnknownTokenError as error:
        raise ProblemError(
            HTTPStatus.NOT_FOUND,
            "unknown_user_id",
            "No environment runs for this user_id: call /reset?user_id=... first. "
            "(An environment that was not used for long makes room for others.)",
        ) from error
    except NoPairLeftError as error:
        raise ProblemError(
            HTTPStatus.GONE, "no_pair_left", "Every pair has been rated: call /reset to begin anew."
        ) from error
    if isinstance(answer, int):
        raise ProblemError(
            HTTPStatus.GONE,
            "no_pair_left",
            "This was the last pair; its rating is in `rating`. Call /reset to begin anew.",
            rating=answer,
        )
    return web.Response(body=msgspec.json.encode(answer), content_type="application/json")


def _query(request: web.Request) -> dict[str, str]:
    # Not `request.query`: it keeps bytes that are not UTF-8 as escapes, and two tokens would be one.
    try:
        pairs = parse_qsl(
            request.rel_url.raw_query_string,
            keep_blank_values=True,
            errors="strict",
            max_num_fields=MAX_PARAMETERS,
        )
    except UnicodeDecodeError as error:
        raise _refused("invalid_query", "The query is not UTF-8.") from error
    except ValueError as error:
        raise _refused("invalid_query", f"The query has more than {MAX_PARAMETERS} parameters.") from error
    query = dict(pairs)  # of a repeated name the last: those that count are refused below
    for name in ("user_id", "predicted_score", "seed"):
        if sum(key == name for key, _ in pairs) > 1:
            raise _refused("repeated_parameter", f"`{name}` is given more than once.")
    return query


def _refused(code: str, detail: str) -> ProblemError:
    return ProblemError(HTTPStatus.BAD_REQUEST, code, detail)


def _required(query: dict[str, str], name: str, example: str) -> str:
    if name not in query:
        raise _refused("missing_parameter", f"`{name}` is missing: {example}")
    return query[name]


def _token(query: dict[str, str]) -> str:
    token = _required(query, "user_id", "choose a token of your own, as ?user_id=aaaa")
    if not 1 <= len(token.encode()) <= MAX_TOKEN_BYTES:
        raise _refused(
            "invalid_user_id",
            f"`user_id` must be 1 to {MAX_TOKEN_BYTES} bytes long, not {len(token.encode())}.",
        )
    return token


def _predicted_score(query: dict[str, str]) -> float:
    text = _required(query, "predicted_score", "the rating of the pending pair, as &predicted_score=0.761")
    score = float(text) if NUMBER.fullmatch(text) else math.nan
    if not math.isfinite(score):
        raise _refused(
            "invalid_predicted_score", f"`predicted_score` must be a finite number, not {text[:40]!r}."
        )
    return score


def _world_seed(query: dict[str, str]) -> int | None:
    text = query.get("seed")
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 19 and int(text) <= MAX_SEED):
        raise _refused(
            "invalid_seed", f"`seed` must be a whole number from 0 to {MAX_SEED}, not {text[:40]!r}."
        )
    return int(text)
