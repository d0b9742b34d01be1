"""Which address is answered by what.

Invariant: what stands here, and nothing else, is Route in /openapi.json.
"""

from collections.abc import Awaitable, Callable
from functools import cache

from aiohttp import HttpVersion11, hdrs, web

from service.context import CONTEXT, ServiceContext
from service.http.access import LEVELS
from service.http.audit import CALLER
from service.http.parsing import check_names
from service.http.response import Answer
from service.openapi import Handler, Route, content, document
from service.routes import (
    administration,
    attributes,
    catalogue,
    deletions,
    events,
    experiments,
    explain,
    exporting,
    generations,
    items,
    lists,
    pages,
    predict,
    ratings,
    recommend,
    scenarios,
    status,
    train,
    users,
)


@Route(
    "GET", "/openapi.json", "Operations", content({"type": "object"}), needs="public", operation_id="describe"
)
async def get_openapi(request: web.Request) -> web.StreamResponse:
    """This description."""
    return Answer(_described_here(request.app[CONTEXT]))


def _described_here(context: ServiceContext) -> bytes:
    known, asks = context.scale(), context.access.asks
    return describe(known.low, known.high, has_steps=known.step is not None, with_keys=asks)


ROUTES: tuple[Route, ...] = (
    *(predict.get_predict, predict.post_predict),
    *(ratings.post_ratings, ratings.delete_rating, exporting.get_ratings),
    *(events.post_events, events.get_user_events, events.delete_event),
    *(events.get_event_types, events.put_event_types, events.delete_event_type),
    *(recommend.get_recommend, recommend.post_recommend_user, recommend.post_recommend),
    *(scenarios.get_scenarios, scenarios.get_scenario, scenarios.put_scenario, scenarios.delete_scenario),
    *(experiments.get_experiments, experiments.get_experiment),
    *(experiments.put_experiment, experiments.delete_experiment),
    *(*lists.ROUTES, explain.get_explain),
    users.get_users,
    *(users.get_user, users.delete_user, users.get_user_ratings, deletions.get_receipt, items.get_item),
    users.get_neighbours,
    *(attributes.get_attributes, attributes.put_attributes, attributes.post_users),
    *(attributes.patch_attributes, attributes.delete_attributes),
    *(attributes.list_attributes, attributes.get_export),
    *(catalogue.get_items, catalogue.post_items, catalogue.get_export),
    *(catalogue.put_item, catalogue.patch_item, deletions.delete_item),
    *(catalogue.get_schema, catalogue.put_schema),
    *(
        catalogue.delete_item_attribute,
        catalogue.delete_user_attribute,
        catalogue.delete_context_field,
    ),
    *(train.post_train, train.get_train, generations.get_generations, generations.post_activate),
    *(status.get_livez, status.get_readyz, status.get_access),
    *(administration.get_settings, administration.get_keys),
    *(administration.post_key, administration.delete_key, administration.put_scale),
    *(status.get_status, status.get_history, status.get_metrics),
    get_openapi,
    *(pages.get_static, pages.get_static_of_folder, pages.get_docs, pages.get_page),
    *(pages.get_manual, pages.get_manual_page),
)


# Recorded by `Audit`.
OPERATIONS = tuple((route.method, route.path) for route in ROUTES if route.needs == "operate")


@cache
def describe(low: float, high: float, *, has_steps: bool = True, with_keys: bool = False) -> bytes:
    """Return the description of the API; see `document`."""
    return document(ROUTES, low, high, has_steps=has_steps, with_keys=with_keys)


def _checked(route: Route) -> tuple[Handler, Callable[[web.Request], Awaitable[None]]]:
    """Return the handler of `route` behind the check of keys, and what answers a client that asks whether
    to send its body (`Expect: 100-continue`): the same check. Only here is it known what a request needs.
    """
    level, handler, names = route.level, route.handler, route.in_query()
    operates = level == LEVELS["operate"]

    def check(request: web.Request) -> None:
        access = request.app[CONTEXT].access
        if operates:
            request[CALLER] = access.name_of(request.headers)
        access.admit(request.headers, level, old_http=request.version < HttpVersion11)

    async def checked(request: web.Request) -> web.StreamResponse:
        check(request)
        if "?" in request.raw_path and route.needs != "public":
            check_names(request.raw_path, names)
        return await handler(request)

    async def expected(request: web.Request) -> None:
        # A GET /predict has no body that would wait for it.
        if handler is not predict.get_predict.handler:
            check(request)
            await _continue(request)

    return checked, expected


async def _continue(request: web.Request) -> None:
    if request.version != HttpVersion11 or request.transport is None:
        return
    if request.headers.get(hdrs.EXPECT, "").lower() != "100-continue":
        raise web.HTTPExpectationFailed
    request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")


def add_routes(app: web.Application) -> None:
    """Register every address."""
    for route in ROUTES:
        handler, expect = _checked(route)
        pattern = route.path
        for name in route.ids():
            # An id may be empty: the check of ids then names the field, where the router would find nothing.
            pattern = pattern.replace(f"{{{name}}}", f"{{{name}:[^/]*}}")
        if route.deep is not None:
            pattern = pattern.replace(f"{{{route.deep}}}", f"{{{route.deep}:.*}}")
        # Registered so, HEAD is answered beside GET.
        web.route(route.method, pattern, handler, expect_handler=expect).register(app.router)
