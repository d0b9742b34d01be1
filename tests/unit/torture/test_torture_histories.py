"""What the auditor takes for possible: an answer that no order of the calls explains is wrong."""

from torture.auditor import ARCHIVE, FORGOTTEN, Auditor, out_of_order
from torture.calls import Reply
from torture.clients import TOLD, Shared, context_of, read_user
from torture.histories import Histories, Write
from torture.report import Report

ANN = "ann"


def rated(histories: Histories, value: float | None, at: float, *, known: bool = True) -> None:
    histories.rated(ANN, {"dune": value}, at, at + 0.5, known=known)


def finds(histories: Histories, value: float | None, at: float) -> bool:
    """Whether a read that finds `value` is taken."""
    return not histories.found(ANN, {} if value is None else {"dune": value}, at)


def test_who_was_forgotten_has_nothing() -> None:
    histories = Histories()
    rated(histories, 1.0, 1.0)
    # What has no answer may come after it.
    rated(histories, 2.0, 1.1, known=False)
    histories.forgetting(ANN)
    histories.forgot(ANN, 2.0, 2.5, known=True)
    assert not finds(histories, 1.0, 3.0)
    assert finds(histories, None, 3.0)
    assert histories.gone[ANN] == {1.0}
    rated(histories, 3.0, 4.0)
    assert finds(histories, 3.0, 5.0)
    assert [write.value for write in histories.live.writes[ANN]] == [3.0]


def test_a_new_history_has_what_came_after_it_began() -> None:
    histories = Histories()
    rated(histories, 1.0, 1.0)
    histories.begin()
    rated(histories, 2.0, 2.0)
    # Which of both answers is open, and whether the new one has the second rating.
    assert finds(histories, 2.0, 3.0)
    assert finds(histories, None, 3.0)
    assert not finds(histories, 1.0, 3.0)
    histories.switched(4.0)
    rated(histories, 3.0, 5.0)
    histories.decide(6.0, replaced=True)
    # A read that began before may have come from the one before.
    assert finds(histories, 3.0, 5.5)
    assert not finds(histories, None, 7.0)
    assert finds(histories, 3.0, 7.0)
    assert [write.value for write in histories.live.writes[ANN]] == [3.0]


def test_events_stand_in_the_order_of_calls() -> None:
    first, second = Write(1.0, 1.0, 2.0), Write(2.0, 3.0, 4.0)
    beside = Write(3.0, 1.5, 3.5)
    assert out_of_order([(1, 1.0), (2, 3.0), (3, 2.0)], [first, second, beside]) is None
    assert out_of_order([(1, 3.0), (2, 1.0), (3, 2.0)], [first, second, beside]) is None
    assert out_of_order([(1, 2.0), (2, 1.0)], [first, second, beside]) is not None


class Answering:
    """Answers every call with one rating of a user and its context."""

    def __init__(self, rating: float, context: dict[str, float] | None) -> None:
        self._row = {"item_id": "dune", "rating": rating, "context": context}

    async def call(self, *_: object, **__: object) -> Reply:
        return Reply(200, {"ratings": [self._row]}, 2.0, 2.5)


async def test_a_context_that_was_not_told_with_a_rating_is_found() -> None:
    for value in (1.0, 1.0 + 1e-9):
        for told in (None, {"mark": 7}, context_of(value)):
            shared = Shared(Answering(value, told), Histories(), Report(seed=1))  # type: ignore[arg-type]
            rated(shared.histories, value, 1.0)
            shared.histories.sent[ANN].add(value)
            await read_user(shared, ANN, 0)
            found = [check for _, check, _ in shared.report.violations]
            assert found == ([] if told == context_of(value) else [TOLD]), (value, told)


def test_the_archive_has_no_event_twice_none_that_was_not_sent_and_none_of_before_an_erasure() -> None:
    shared = Shared(None, Histories(), Report(seed=1))  # type: ignore[arg-type]  # no call is made
    auditor = Auditor(None, None, shared, 1)  # type: ignore[arg-type]  # neither is looked at
    for value in (1.0, 2.0):
        rated(shared.histories, value, value)
        shared.histories.sent[ANN].add(value)
    for events, erased, wrong in (
        ([(1, 1.0), (2, 2.0)], {}, []),
        ([(1, 1.0), (1, 2.0)], {}, [ARCHIVE]),
        ([(1, 1.0), (2, 3.0)], {}, [ARCHIVE]),
        ([(1, 1.0), (2, 2.0)], {ANN: {1.0}}, [FORGOTTEN]),
        ([(2, 2.0)], {ANN: {1.0}}, []),
    ):
        shared.report.violations.clear()
        auditor._check_user(ANN, events, shared.histories.live, erased)
        assert [check for _, check, _ in shared.report.violations] == wrong, events
