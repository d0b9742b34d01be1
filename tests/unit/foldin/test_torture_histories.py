"""What the auditor takes for possible: an answer that no order of the calls explains is wrong."""

import itertools
from dataclasses import replace

from featurestore.generations.manifest import Pointer
from foldin.torture.auditor import ARCHIVE, FORGOTTEN, Auditor, is_backwards, out_of_order
from foldin.torture.calls import Reply
from foldin.torture.clients import TOLD, Shared, context_of, read_user
from foldin.torture.histories import LATE_S, Histories, Write
from foldin.torture.report import Report

ANN = "ann"


def rated(histories: Histories, value: float | None, at: float, *, known: bool = True) -> None:
    histories.rated(ANN, {"dune": value}, at, at + 0.5, known=known)


def finds(histories: Histories, value: float | None, at: float) -> bool:
    """Whether a read that finds `value` is taken."""
    return not histories.found(ANN, {} if value is None else {"dune": value}, at)


def test_what_was_acknowledged_last_must_be_found() -> None:
    histories = Histories()
    rated(histories, 1.0, 1.0)
    rated(histories, 2.0, 2.0)
    assert not finds(histories, 1.0, 3.0)
    assert not finds(histories, None, 3.0)
    assert histories.found(ANN, {"dune": 2.0, "emma": 4.0}, 3.0)
    assert finds(histories, 2.0, 3.0)


def test_what_was_not_answered_may_come_until_an_answer_rules_it_out() -> None:
    histories = Histories()
    rated(histories, 1.0, 1.0)
    rated(histories, 2.0, 2.0, known=False)
    assert finds(histories, 1.0, 3.0)
    assert finds(histories, 2.0, 4.0)
    # It has come, and does not go again.
    late = 5.0 + LATE_S
    assert finds(histories, 2.0, late)
    assert not finds(histories, 1.0, late)


def test_what_may_have_come_late_stays_possible() -> None:
    histories = Histories()
    rated(histories, 1.0, 1.0)
    rated(histories, 2.0, 2.0, known=False)
    late = 5.0 + LATE_S
    assert finds(histories, 2.0, late)


def test_who_was_forgotten_has_nothing() -> None:
    histories = Histories()
    rated(histories, 1.0, 1.0)
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


def test_a_history_that_was_given_up_changes_nothing() -> None:
    histories = Histories()
    rated(histories, 1.0, 1.0)
    histories.begin()
    histories.decide(2.0, replaced=False)
    assert not finds(histories, None, 3.0)
    assert finds(histories, 1.0, 3.0)


def test_what_is_surely_rated() -> None:
    histories = Histories()
    rated(histories, 1.0, 1.0)
    assert histories.surely_rated(ANN, 2.0) == {"dune"}
    rated(histories, None, 2.0, known=False)
    assert histories.surely_rated(ANN, 3.0) == set()


def test_events_stand_in_the_order_of_calls() -> None:
    first, second = Write(1.0, 1.0, 2.0), Write(2.0, 3.0, 4.0)
    beside = Write(3.0, 1.5, 3.5)
    assert out_of_order([(1, 1.0), (2, 3.0), (3, 2.0)], [first, second, beside]) is None
    assert out_of_order([(1, 3.0), (2, 1.0), (3, 2.0)], [first, second, beside]) is None
    assert out_of_order([(1, 2.0), (2, 1.0)], [first, second, beside]) is not None


def test_the_report_names_what_is_wrong_and_how_to_repeat_it() -> None:
    report = Report(seed=7)
    report.called("rate", 200)
    report.called("rate", 503)
    report.called("rate", 0)
    report.checked("order", 2)
    report.faults["power cut"] += 1
    assert "| rate | 1 | 1 | 1 |" in report.lines()
    assert "| order | 2 | 0 | 0 |" in report.lines()
    for number in range(30):
        report.violated("order", f"the {number}. one")
    report.violated("reads", "a late one")
    lines = report.lines()
    assert "| order | 2 | 0 | 30 |" in lines
    assert lines[0].startswith("Seed 7, ")
    assert sum("VIOLATION" in line for line in lines) == 11
    assert any("a late one" in line for line in lines)
    assert lines[-1] == "... 31 violations in all"


def test_no_rating_is_given_twice() -> None:
    shared = Shared(None, Histories(), Report(seed=1))  # type: ignore[arg-type]  # no call is made
    first = [shared.value(0, 0) for _ in range(2)]
    # More than an hour of large histories gives.
    shared.numbers = itertools.count(10_000_000)
    assert first[0] != first[1]
    assert shared.value(0, 0) not in first


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


def test_the_first_history_is_not_taken_for_one_that_replaced_it_where_another_begins_at_once() -> None:
    shared = Shared(None, Histories(), Report(seed=1))  # type: ignore[arg-type]  # no call is made
    auditor = Auditor(None, None, shared, 2)  # type: ignore[arg-type]  # neither is looked at
    first = shared.histories.live
    shared.histories.begin()
    pointer = Pointer(2, 7, 3, held=False, previous=6, pending=0, pending_since=0.0)
    auditor._decide(pointer, {b"2"}, 1.0)
    assert len(shared.histories.worlds) == 2
    shared.histories.begun(2.0, refused=True)
    auditor._decide(pointer, {b"2"}, 3.0)
    assert shared.histories.worlds == [first]


def test_the_pointer_goes_back_only_where_that_was_asked_for() -> None:
    before = Pointer(2, 7, 3, held=False, previous=6, pending=0, pending_since=0.0)
    assert is_backwards(before, replace(before, generation=6), {5: 1.0})
    assert is_backwards(before, replace(before, fence=2), {})
    assert is_backwards(before, replace(before, epoch=1, generation=8), {})
    assert not is_backwards(before, replace(before, generation=6), {6: 1.0})
    assert not is_backwards(before, replace(before, epoch=3, generation=8, fence=4), {})
