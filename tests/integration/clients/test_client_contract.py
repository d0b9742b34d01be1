"""Every call of the description is made once by a real client at a real service. The client reads each answer
as what the description says of it, and raises where it is another.
"""

import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from featurestore.store import Store
from foldin_client import AsyncClient, UnreadableAnswerError, models, problems
from foldin_client.asynchronous import transport
from foldin_client.wire import decoded
from tests.support import house
from tests.support.examples import examples, left_out, ran
from tests.support.serving import Client
from tests.support.small_trainer import serving_with_trainer

COLUMNS = {"user_history": [0, 0, 1], "item_history": [0, 2, 1], "rating_history": [5.0, 1.0, 4.0]}
HISTORY = {"nb_users": 2, "nb_items": 3, **COLUMNS}


@pytest.fixture
async def served(store: Store) -> AsyncIterator[Client]:
    async with serving_with_trainer(store) as client:
        yield client


async def ratings(foldin: Any) -> None:
    assert (await foldin.decide_scale(low=1, high=5)).served
    await foldin.put_schema(context={"hour": {"kind": "number"}})
    mine = models.RatingIn(user_id="ann", item_id=7, rating=4.5, timestamp=1.7e9, context={"hour": 21})
    rated = await foldin.rate([mine, {"user_id": "eve", "item_id": "emma", "rating": 2}])
    assert rated == models.Accepted(accepted=2, generation=1)
    line = models.RatingLine(user_id="ann", item_id="7", rating=4.5, timestamp=1.7e9, context={"hour": 21.0})
    assert line in [each async for each in foldin.export_ratings()]
    assert (await foldin.predict("ann", "dune", timestamp=1.7e9)).basis == "user+item"
    for many in (
        await foldin.predict_many([("ann", "dune"), ("eve", 7)]),
        await foldin.predict_many(user_id="ann", item_ids=["dune", "nothing"], context={"hour": 8}),
    ):
        assert [prediction.basis for prediction in many.predictions] == ["user+item", "user"]
    assert (await foldin.unrate("ann", 7)).deleted == 1
    with pytest.raises(problems.UnknownRatingError) as caught:
        await foldin.unrate("ann", 7)
    assert (caught.value.status, caught.value.attempts) == (404, 1)
    assert caught.value.request_id
    await foldin.post_events({"user_id": "ann", "item_id": "dune", "type": "view"})
    assert [event.type for event in (await foldin.get_user_events("ann", n=5)).events] == ["view"]
    await foldin.delete_event("ann", "dune", "view")
    types = (await foldin.get_event_types()).types
    await foldin.put_event_types(types=[{"name": each.name, "meaning": each.meaning} for each in types])
    assert (await foldin.retire_event_type("click")).types[1].retired


async def lists(foldin: Any) -> None:
    assert (
        len((await foldin.recommend("ann", n=2, exclude_seen=False, include=["title", "reasons"])).items) == 2
    )
    shown = await foldin.recommend_by_rules("ann", n=1, exclude_items=["emma"], exclude_seen=False)
    assert [item.item_id for item in shown.items] != ["emma"]
    mine = [models.AnonymousRating(item_id="dune", rating=5), {"item_id": "nothing", "rating": 1}]
    assert (await foldin.recommend_anonymous(ratings=mine, n=1)).ignored == 1
    assert (await foldin.similar("dune", n=1)).item_id == "dune"
    assert (await foldin.similar_by_rules("dune", by="content", n=1)).item_id == "dune"
    for name in ("popular", "trending", "latest"):
        assert (await getattr(foldin, name)(n=1)).generation == 1
        assert (await getattr(foldin, f"{name}_by_rules")(user_id="ann")).recommendation_id
    assert [part.item_id for part in (await foldin.explain("ann", "emma")).parts] == ["dune"]


async def catalogue(foldin: Any) -> None:
    await foldin.put_schema(items={"year": "text"}, users={"age": "text"})
    assert not (await foldin.delete_item_attribute("year")).items
    assert not (await foldin.delete_user_attribute("age")).users
    await foldin.put_schema(items={"year": "number"}, context={"device": {"kind": "category"}})
    item = await foldin.put_item("dune", categories=["drama"], attributes={"year": 1965})
    assert (item.categories, item.attributes) == (["drama"], {"year": 1965})
    await foldin.patch_item("dune", hidden=False)
    odd = {"item_id": "odd \u2028 \x85\n/?#%2F", "attributes": {"title": "two\u2028lines"}}
    assert (await foldin.put_items([models.ItemRowIn(item_id="emma"), odd])).accepted == 2
    assert (await foldin.list_items(n=10)).total == 3
    exported = [item async for item in foldin.export_items()]
    assert [item.item_id for item in exported] == [item.item_id async for item in foldin.iter_items()]
    assert odd["item_id"] in [item.item_id for item in exported]
    # Those that ratings alone name, too.
    known = {item.item_id: item.ratings async for item in foldin.iter_items(of="all")}
    assert known.keys() > {item.item_id for item in exported}
    assert known["dune"] == (await foldin.get_item("dune")).ratings
    # What was exported can be imported as it came.
    assert (await foldin.put_items(exported)).accepted == 3
    assert (await foldin.get_item("dune")).categories == ["drama"]
    assert (await foldin.delete_item(odd["item_id"])).deleted == 1
    assert (await foldin.get_schema()).context["device"].kind == "category"
    await foldin.rate({"user_id": "ann", "item_id": "dune", "rating": 5, "context": {"device": "tv"}})
    assert "device" not in (await foldin.delete_context_field("device")).context


async def rules(foldin: Any) -> None:
    for name in ("home", "late"):
        await foldin.put_scenario(name, per_category=3)
    assert (await foldin.get_scenario("home")).per_category == 3
    assert (await foldin.get_scenarios()).scenarios == ["home", "late"]
    arms = [models.ArmIn(name=name, share=0.5, scenario=name) for name in ("home", "late")]
    await foldin.put_experiment("which", arms=arms, scenario="home")
    assert [each.name for each in (await foldin.get_experiments()).experiments] == ["which"]
    assert {arm.name for arm in (await foldin.get_experiment("which")).arms} == {"home", "late"}
    await foldin.delete_experiment("which", keep="home")
    await foldin.delete_scenario("late")


async def users(foldin: Any) -> None:
    # A page may be empty though more follow: of a store that others use, too, it looks through a part.
    assert set((await foldin.find_users(prefix="an", n=10)).users) <= {"ann"}
    assert {user_id async for user_id in foldin.iter_users(prefix="an")} == {"ann"}
    assert {"ann", "bob", "eve"} <= {user_id async for user_id in foldin.iter_users()}
    assert (await foldin.get_user("ann")).ratings == 1
    assert [each.item_id for each in (await foldin.get_user_ratings("ann")).ratings] == ["dune"]
    assert [each.item_id async for each in foldin.iter_user_ratings("ann")] == ["dune"]
    await foldin.neighbours("ann")
    await foldin.put_users({"user_id": "ann", "attributes": {"age": 30}})
    await foldin.put_attributes("ann", {"age": 31})
    await foldin.patch_attributes("ann", {"country": "fr"})
    assert (await foldin.get_attributes("ann")).attributes == {"age": 31, "country": "fr"}
    assert [each.user_id for each in (await foldin.list_attributes(n=5)).users] == ["ann"]
    assert (await foldin.put_users([each async for each in foldin.export_users()])).accepted == 1
    await foldin.delete_attributes("ann")
    receipt = await foldin.forget_user("eve")
    assert (await foldin.get_receipt(receipt.receipt)).receipt == receipt.receipt
    with pytest.raises(problems.UnknownUserError, match="unknown_user"):
        await foldin.get_user("eve")


async def operation(foldin: Any) -> str:
    for name in ("livez", "readyz", "settings", "status"):
        await getattr(foldin, name)()
    assert (await foldin.access()).role == "operate"
    assert (await foldin.history(seconds=60)).step_s > 0
    assert "foldin_http_requests_total" in await foldin.metrics()
    assert (await foldin.describe())["openapi"] == "3.1.0"
    # Where it was built `/manual` leads to its first page; else both say how it is.
    try:
        await foldin.manual()
    except UnreadableAnswerError as error:
        assert error.status == 308  # noqa: PT017  # which of the two comes depends on the checkout
    assert "Foldin" in await foldin.manual_page("index.html")
    await foldin.page()
    await foldin.docs_page()
    await foldin.page_file("style.css")
    await foldin.page_folder_file("app", "main.js")
    with pytest.raises(problems.RatingsWouldBeLostError) as caught:
        await foldin.train(**HISTORY)
    assert caught.value.more["ratings"] >= 1
    trained = await foldin.train(**HISTORY, replace=True)
    assert (type(trained), trained.generation) == (models.TrainedOut, 2)
    assert await foldin.refit() == 3
    asked = await foldin.train(wait=0)
    assert type(asked) is models.TrainingOut
    assert (await foldin.get_training(asked.receipt)).receipt == asked.receipt
    assert (await foldin.wait_for_training(asked.receipt)).state == "done"
    assert (await foldin.get_generations()).live == 4
    assert (await foldin.activate(3)).held
    key: str = (await foldin.add_key(name="shop", role="operate")).key
    return key


async def test_every_call_of_the_description_is_made(served: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    lost = set[str]()

    def compared(response: httpx.Response, kind: Any) -> Any:
        made = decoded(response, kind)
        if found := left_out(response.json(), made):
            lost.add(f"{response.request.method} {response.request.url.path}: {found}")
        return made

    monkeypatch.setattr(transport, "decoded", compared)
    described = (await served.get("/openapi.json")).json
    known = {(method.upper(), path) for path, methods in described["paths"].items() for method in methods}
    made = set[tuple[str, str]]()

    async def note(request: httpx.Request) -> None:
        path = request.url.raw_path.decode().partition("?")[0]
        found = [
            template
            for method, template in known
            if method == request.method and re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", template), path)
        ]
        # What is spelled out goes before an id.
        made.add((request.method, min(found, key=lambda template: template.count("{"))))

    async with httpx.AsyncClient(event_hooks={"request": [note]}) as http:
        foldin = AsyncClient(served.url, http=http)
        for part in (ratings, lists, catalogue, rules, users):
            await part(foldin)
        keyed = AsyncClient(served.url, await operation(foldin), http=http)
        assert [key.name for key in (await keyed.get_keys()).keys] == ["shop"]
        assert (await keyed.remove_key("shop")).removed == 1
    assert known - made == set()
    assert lost == set(), "what the service answers, the description has not"


@pytest.mark.slow
async def test_every_example_of_the_manual_runs_as_it_stands(served: Client, tmp_path: Path) -> None:
    texts = [(house.ROOT / name).read_text() for name in ("clients/python/README.md", "docs/clients.md")]
    blocks = [block for text in texts for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL)]
    # In one program, as those below use what those above import.
    program = "\n".join(blocks).replace("http://127.0.0.1:8080", served.url)
    said = await ran(program, "-W", "error", folder=tmp_path)
    # The user whom no rating names, and the ratings that came back out of the export.
    assert "unknown_user 404" in said
    assert "\n2\n" in said


async def test_every_example_of_the_manual_is_a_call_that_is_taken(served: Client) -> None:
    """As docs/api.md has them. What a small store does not know is another answer than what is not taken."""
    sent, wrong = examples((house.ROOT / "docs/api.md").read_text("utf-8")), []
    assert len(sent) > 30
    for each in sent:
        body = None if each.body is None else each.body.encode()
        answer = await served.ask(each.method, f"/{each.path}", data=body, headers=each.headers)
        # Of the two that are 404, what is not there is another answer than a call that is none.
        none = answer.status == 404 and answer.json["code"] == "not_found"
        if none or answer.status in {400, 405, 413, 415, 422} or answer.status >= 500:
            wrong.append((each.method, each.path, answer.status, answer.json["detail"]))
    assert not wrong, "\n".join(map(str, wrong))
