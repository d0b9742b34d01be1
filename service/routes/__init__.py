"""Which address is answered by what.

Invariant: what stands here, and nothing else, is Route in /openapi.json.
"""

from functools import cache

from aiohttp import web

from service.context import CONTEXT
from service.http.response import Answer
from service.openapi import Route, content, document
from service.routes import generations, items, operations, page, predict, ratings, recommend, train, users


@Route("GET", "/openapi.json", "Operations", content({"type": "object"}))
async def get_openapi(request: web.Request) -> web.StreamResponse:
    """This description."""
    context = request.app[CONTEXT]
    scale, live = context.store.config.scale, context.follower.live
    # A fit finds the step that the ratings keep where the scale names none.
    step = scale.step if live is None else live.model.scale.step
    return Answer(describe(scale.low, scale.high, has_steps=step is not None))


ROUTES: tuple[Route, ...] = (
    *(predict.get_predict, predict.post_predict),
    *(ratings.post_ratings, ratings.delete_rating),
    *(recommend.get_recommend, recommend.post_recommend),
    *(items.get_similar, items.get_popular, recommend.get_explain),
    *(users.get_user, users.delete_user, users.get_user_ratings, users.get_receipt, items.get_item),
    *(train.post_train, generations.get_generations, generations.post_activate),
    *(operations.get_livez, operations.get_readyz, operations.get_status, operations.get_metrics),
    *(get_openapi, page.get_static, page.get_docs, page.get_page),
)


@cache
def describe(low: float, high: float, *, has_steps: bool = True) -> bytes:
    """Return the description of the API; see `document`."""
    return document(ROUTES, low, high, has_steps=has_steps)


async def _continue_unasked(request: web.Request) -> None:
    """Send no `100 Continue`: a GET has no body that would wait for it."""


def add_routes(app: web.Application) -> None:
    """Register every address."""
    for route in ROUTES:
        expect = _continue_unasked if route is predict.get_predict else None
        pattern = route.path
        for name in route.ids():
            # An id may be empty: the check of ids then names the field, where the router would find nothing.
            pattern = pattern.replace(f"{{{name}}}", f"{{{name}:[^/]*}}")
        # Registered so, HEAD is answered beside GET.
        web.route(route.method, pattern, route.handler, expect_handler=expect).register(app.router)
