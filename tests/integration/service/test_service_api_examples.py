"""The examples of docs/api.md, each sent as it stands to a real service with a trainer.

A small store does not know all that they name: what is not known is another answer than what is not taken.
"""

from pathlib import Path

from featurestore.settings import StoreSettings
from featurestore.store import Store
from tests.support.examples import examples
from tests.support.factories import rating
from tests.support.small_trainer import serving_with_trainer

API = Path(__file__).resolve().parents[3] / "docs/api.md"


async def test_every_example_of_the_manual_is_a_call_that_is_taken(
    store_settings: StoreSettings, store: Store
) -> None:
    sent = examples(API.read_text("utf-8"))
    assert len(sent) > 30
    ratings = [rating("ann", "dune", 5.0), rating("bob", "emma", 2.0)]
    wrong = []
    async with serving_with_trainer(store_settings, store, ratings, users=[b"ann", b"bob"]) as served:
        for each in sent:
            body = None if each.body is None else each.body.encode()
            answer = await served.ask(each.method, f"/{each.path}", data=body, headers=each.headers)
            # Of the two that are 404, what is not there is another answer than a call that is none.
            none = answer.status == 404 and answer.json["code"] == "not_found"
            if none or answer.status in {400, 405, 413, 415, 422} or answer.status >= 500:
                wrong.append((each.method, each.path, answer.status, answer.json["detail"]))
    assert not wrong, "\n".join(map(str, wrong))
