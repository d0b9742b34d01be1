"""GET and POST /predict. Invariant: answers stand in the order in which the pairs were asked."""

import msgspec
from aiohttp import web

from featurestore.generations.follower import LiveGeneration
from featurestore.id_columns import Ids
from service.context import BATCHES, BODIES, FOLLOWER, PREDICTOR
from service.http.bodies import is_lines, parsed
from service.http.fast_pairs import plain_pairs
from service.http.parsing import Body, Id, body_id, body_ids, check_rows
from service.http.problems import Problem
from service.http.response import Answer
from service.micro_batcher import Predictor, require

MAX_PAIRS = 10_000


class PredictBody(msgspec.Struct):
    """One pair, one user with several items, or pairs: exactly one of the three."""

    user_id: Id | msgspec.UnsetType = msgspec.UNSET
    item_id: Id | msgspec.UnsetType = msgspec.UNSET
    item_ids: list[Id] | msgspec.UnsetType = msgspec.UNSET
    pairs: list[tuple[Id, Id]] | msgspec.UnsetType = msgspec.UNSET


_BODY: Body[PredictBody] = Body(PredictBody)


async def get_predict(request: web.Request) -> web.StreamResponse:
    """One pair. GET with a query in the usual form does not come here: the edge answers it."""
    return Answer(await request.app[PREDICTOR].quick(request.raw_path))


async def post_predict(request: web.Request) -> web.StreamResponse:
    """One pair or up to 10,000."""
    if is_lines(request):
        raise Problem("unsupported_media_type", "send application/json")
    async with request.app[BODIES].read(request) as body, request.app[BATCHES].turn(len(body)):
        return await _answer_body(request, body)


async def _answer_body(request: web.Request, body: bytearray) -> Answer:
    plain = plain_pairs(body)
    asked = PredictBody() if plain is not None else await parsed(body, _BODY.decode)
    predictor, live = request.app[PREDICTOR], require(request.app[FOLLOWER].live)
    if plain is not None:
        return await _answer_pairs(predictor, live, *plain)
    given = [name for name in ("item_id", "item_ids", "pairs") if getattr(asked, name) is not msgspec.UNSET]
    if len(given) != 1:
        detail = "send user_id with item_id, user_id with item_ids, or pairs"
        raise Problem("invalid_body", detail, field=given[1] if given else "item_id")
    if isinstance(asked.pairs, list):
        if asked.user_id is not msgspec.UNSET:
            raise Problem("invalid_body", "user_id does not go with pairs", field="user_id")
        check_rows(len(asked.pairs), MAX_PAIRS, "pairs")
        users = body_ids([pair[0] for pair in asked.pairs], "pairs")
        items = body_ids([pair[1] for pair in asked.pairs], "pairs")
        return await _answer_pairs(predictor, live, Ids.of(users), Ids.of(items))
    if isinstance(asked.user_id, msgspec.UnsetType):
        raise Problem("invalid_body", "user_id is missing", field="user_id")
    user_id = body_id(asked.user_id, "user_id")
    if isinstance(asked.item_ids, list):
        check_rows(len(asked.item_ids), MAX_PAIRS, "item_ids")
        items = body_ids(asked.item_ids, "item_ids")
        return Answer(await predictor.many(live, Ids.of([user_id]), Ids.of(items)))
    if isinstance(asked.item_id, msgspec.UnsetType):
        raise Problem("invalid_body", "item_id is missing", field="item_id")
    return Answer(await predictor.ask(user_id, body_id(asked.item_id, "item_id")))


async def _answer_pairs(predictor: Predictor, live: LiveGeneration, users: Ids, items: Ids) -> Answer:
    check_rows(len(users), MAX_PAIRS, "pairs")
    return Answer(await predictor.many(live, users, items))
