"""An import of events of types, straight to the store and through the API."""

import pytest

from featurestore.settings import StoreSettings
from featurestore.store import Store
from foldin.sinks import ApiSink, Row, RowRefusedError, Sink, StoreSink
from tests.support.serving import serving

ROWS: list[Row] = [
    (b"ann", b"x", 1.0, 5.0, b"view"),
    (b"ann", b"y", 4.0, 6.0, b"rating"),
    (b"ann", b"x", 30.0, 7.0, b"purchase"),
]


@pytest.mark.parametrize("target", ["store", "api"])
async def test_events_arrive_as_they_are(store: Store, store_settings: StoreSettings, target: str) -> None:
    async with serving(store_settings) as (client, _):
        sink: Sink = StoreSink(store, "the store", 1)
        if target == "api":
            sink = await ApiSink.open(client.url, None)
        await sink.write(ROWS)
        with pytest.raises(RowRefusedError) as refused:
            await sink.write([*ROWS, (b"ann", b"z", 1.0, 8.0, b"sneeze")])
        assert refused.value.position == 3
        assert "sneeze" in str(refused.value)
        _, history = await store.users.history(1, b"ann")
        assert (history.rating.tolist(), history.time.tolist()) == ([4.0], [6.0])
        feedback = history.feedback
        assert list(zip(feedback.type_code.tolist(), feedback.value.tolist(), strict=True)) == [
            (1, 1.0),
            (4, 30.0),
        ]
        if target == "api":
            await sink.close()
