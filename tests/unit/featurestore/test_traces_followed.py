"""Which batches a mark leads to."""

from collections.abc import Mapping
from typing import Any

from featurestore.keys import Keys
from featurestore.telemetry.traces import Mark, Traces

Ends = Mapping[int, tuple[int, int]]


class Told:
    """Takes spans in place of a collector."""

    def __init__(self) -> None:
        self.events: list[int] = []

    def consumed(self, carried: str, name: str, times_ns: tuple[int, int], **attributes: int) -> None:
        assert (carried, name) == ("t", "archive ratings")
        assert times_ns[0] <= times_ns[1]
        self.events.append(attributes["events"])


def following(*batches: tuple[int, Ends]) -> tuple[Traces, Told]:
    """Traces after these batches, by epoch; the k-th has k + 1 events."""
    nothing: Any = None
    told: Any = Told()
    traces = Traces(Keys("t", 4), nothing, nothing, told)
    for k, (epoch, last) in enumerate(batches):
        traces.archived(epoch, last, k + 1, k)
    return traces, told


def test_a_mark_leads_to_the_first_batch_that_has_all_of_a_partition() -> None:
    batches = [(1, {0: (5, 1)}), (1, {0: (6, 3), 1: (6, 1)}), (2, {0: (7, 9)}), (1, {0: (8, 4)})]
    for ends, events in (
        ({0: (5, 1)}, [1]),
        ({0: (5, 2)}, [2]),
        ({0: (6, 3)}, [2]),
        ({0: (6, 4)}, [4]),
        ({0: (5, 1), 1: (6, 1)}, [1, 2]),
        ({0: (6, 2), 1: (6, 1)}, [2]),
    ):
        traces, told = following(*batches)
        assert traces._told(Mark("t", 1, ends))
        assert sorted(told.events) == events, ends
