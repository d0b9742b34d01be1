"""An import of events of types, and of contexts, straight to the store and through the API."""

import pytest

from featurestore.ratings.context_schema import ContextSchema
from featurestore.ratings.event_types import DEFAULT_TYPES, NewType, replaced
from featurestore.settings import StoreSettings
from featurestore.store import Store
from foldin.sinks import ApiSink, Row, RowRefusedError, Sink, StoreSink
from tests.support.serving import serving

ROWS: list[Row] = [
    (b"ann", b"x", 1.0, 5.0, b"view"),
    (b"ann", b"y", 4.0, 6.0, b"rating"),
    (b"ann", b"x", 30.0, 7.0, b"purchase"),
    # Of what was shown the value is a generation: the store takes none of a file, the API what it is told.
    (b"ann", b"y", 9.0, 8.0, b"impression"),
]


@pytest.mark.parametrize("target", ["store", "api"])
async def test_events_arrive_as_they_are(store: Store, store_settings: StoreSettings, target: str) -> None:
    async with serving(store_settings) as (client, _):
        sink: Sink = StoreSink(store, "the store", 1)
        if target == "api":
            sink = await ApiSink.open(client.url, None)
        wanted = [NewType(each.name, each.meaning) for each in DEFAULT_TYPES if each.name != "click"]
        await store.event_types.change(lambda before: replaced(before, wanted))
        await sink.write(ROWS)
        # One that there never was, and a retired one.
        for name in ("sneeze", "click"):
            with pytest.raises(RowRefusedError) as refused:
                await sink.write([*ROWS, (b"ann", b"z", 1.0, 8.0, name.encode())])
            assert refused.value.position == 4
            assert f"no event type '{name}'" in str(refused.value)
            assert "impression" in str(refused.value)
        _, history = await store.users.history(1, b"ann")
        assert (history.rating.tolist(), history.time.tolist()) == ([4.0], [6.0])
        feedback = history.feedback
        assert list(zip(feedback.type_code.tolist(), feedback.value.tolist(), strict=True)) == [
            (1, 1.0),
            (4, 30.0),
            (7, 0.0 if target == "store" else 9.0),
        ]
        if target == "api":
            await sink.close()


@pytest.mark.parametrize("target", ["store", "api"])
async def test_contexts_arrive_with_their_ratings(
    store: Store, store_settings: StoreSettings, target: str
) -> None:
    async with serving(store_settings) as (client, _):
        sink: Sink = StoreSink(store, "the store", 1)
        if target == "api":
            sink = await ApiSink.open(client.url, None)
        assert await sink.context_schema() == ContextSchema()
        given: dict[str, float | str] = {"hour": 14.5, "device": "phone"}
        await sink.write([(b"ann", b"x", 4.0, 5.0, None, given), (b"ann", b"y", 2.0, 6.0, None, None)])
        events: list[Row] = [(b"ann", b"z", 3.0, 7.0, b"rating", {"hour": 9}), (*ROWS[0], None)]
        await sink.write(events)
        known = {each.name: (each.kind, each.categories) for each in (await sink.context_schema()).fields}
        assert known == {"hour": ("number", ()), "device": ("category", ("phone",))}
        with pytest.raises(RowRefusedError, match="'device' must be a text") as refused:
            await sink.write([events[1], (b"bob", b"z", 3.0, 7.0, b"rating", {"device": 9})])
        assert (refused.value.position, refused.value.field) == (1, "context.device")
        page = (await client.get("/users/ann/ratings")).json["ratings"]
        assert [each.get("context") for each in page] == [{"hour": 9}, None, given]
        assert (await store.users.history(1, b"bob"))[0] == 0
        if target == "api":
            await sink.close()
