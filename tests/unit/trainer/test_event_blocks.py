"""Events by item in blocks: the same as a list of them for each item, in 25 bytes an event."""

import tracemalloc

import numpy as np
import pytest

from trainer.item_updates import event_blocks
from trainer.item_updates.event_blocks import EVENT, EventBlocks, Events

NAN = float("nan")


def drawn(rng: np.random.Generator, count: int, items: int) -> tuple[np.ndarray, Events]:
    events = np.zeros(count, dtype=EVENT)
    events["slot"], events["rating"] = rng.integers(0, 50, count), rng.integers(1, 6, count)
    events["time"] = rng.random(count)
    return rng.integers(0, items, count), events


@pytest.mark.parametrize("most_joined", [0, 60, 1 << 18])
def test_each_item_has_its_events_in_the_order_in_which_they_came(
    monkeypatch: pytest.MonkeyPatch, most_joined: int
) -> None:
    monkeypatch.setattr(event_blocks, "_MOST_JOINED", most_joined)
    rng, blocks = np.random.default_rng(0), EventBlocks()
    expected: dict[int, list[tuple[object, list[float]]]] = {}
    for batch, count in enumerate([1, 40, 3, 0, 17, 2, 30]):
        rows, events = drawn(rng, count, 9)
        # Of a batch with a context it is known of each event; of others of none.
        context = rng.random((count, 2)).astype(np.float32) if batch % 2 else None
        for k, row in enumerate(rows.tolist()):
            told = [NAN, NAN] if context is None else context[k].tolist()
            expected.setdefault(row, []).append((events[k].item(), told))
        blocks.add(rows, events, context)
    assert len(blocks) == 93
    assert blocks.of_item(9) == []
    for row, those in expected.items():
        found = []
        for part, context in blocks.of_item(row):
            told = np.full((len(part), 2), NAN, np.float32) if context is None else context
            found += list(zip(part.tolist(), told.tolist(), strict=True))
        np.testing.assert_equal(found, those)


def test_what_a_user_gave_is_taken_back() -> None:
    rng, blocks = np.random.default_rng(1), EventBlocks()
    batches = [drawn(rng, count, 20) for count in (100, 10, 35)]
    for rows, events in batches:
        blocks.add(rows, events, None)
    own = {row for rows, events in batches for row in rows[events["slot"] == 7].tolist()}
    assert blocks.take_back(7) == sorted(own)
    parts = [part for row in range(20) for part, _ in blocks.of_item(row)]
    after = np.concatenate(parts)
    assert len(after) == 145
    assert np.array_equal(np.isnan(after["rating"]), after["slot"] == 7)


def test_memory_of_an_event_does_not_hang_on_how_few_come_at_a_time() -> None:
    """Each batch has about one event of each item. An object for each of these took some 140 bytes."""
    rng = np.random.default_rng(2)

    def bytes_of(count: int) -> int:
        batches = [drawn(rng, 2_000, 2_000) for _ in range(count // 2_000)]
        tracemalloc.start()
        blocks = EventBlocks()
        for rows, events in batches:
            blocks.add(rows, events, None)
        held, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert len(blocks) == count
        return held

    few, many = bytes_of(40_000), bytes_of(120_000)
    assert many - few < 30 * 80_000
