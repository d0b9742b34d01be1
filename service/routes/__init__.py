"""Which address is answered by what.

Invariant: what stands here, and nothing else, is described in /openapi.json.
"""

from aiohttp import web

from service.routes.generations import get_generations, post_activate
from service.routes.items import get_item, get_popular, get_similar
from service.routes.openapi import get_openapi
from service.routes.operations import get_livez, get_metrics, get_readyz, get_status
from service.routes.page import get_docs, get_page, get_static
from service.routes.predict import get_predict, ignore_expect, post_predict
from service.routes.ratings import delete_rating, post_ratings
from service.routes.recommend import get_explain, get_recommend, post_recommend
from service.routes.train import post_train
from service.routes.users import delete_user, get_receipt, get_user, get_user_ratings

# An empty id is answered by the check of ids, which names the field, and not as an address that is not there.
ROUTES = (
    web.get("/predict", get_predict, expect_handler=ignore_expect),
    web.post("/predict", post_predict),
    web.post("/ratings", post_ratings),
    web.delete("/ratings/{user_id:[^/]*}/{item_id:[^/]*}", delete_rating),
    web.get("/recommend/{user_id:[^/]*}", get_recommend),
    web.post("/recommend", post_recommend),
    web.get("/similar/{item_id:[^/]*}", get_similar),
    web.get("/popular", get_popular),
    web.get("/explain/{user_id:[^/]*}/{item_id:[^/]*}", get_explain),
    web.get("/users/{user_id:[^/]*}", get_user),
    web.delete("/users/{user_id:[^/]*}", delete_user),
    web.get("/users/{user_id:[^/]*}/ratings", get_user_ratings),
    web.get("/receipts/{receipt:[^/]*}", get_receipt),
    web.get("/items/{item_id:[^/]*}", get_item),
    web.post("/train", post_train),
    web.get("/generations", get_generations),
    web.post("/generations/{generation}/activate", post_activate),
    web.get("/livez", get_livez),
    web.get("/readyz", get_readyz),
    web.get("/metrics", get_metrics),
    web.get("/status", get_status),
    web.get("/openapi.json", get_openapi),
    web.get("/docs", get_docs),
    web.get("/", get_page),
    web.get("/static/{name}", get_static),
)


def add_routes(app: web.Application) -> None:
    """Register every address."""
    app.router.add_routes(ROUTES)
