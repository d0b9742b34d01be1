"""What the auditor takes for possible: an answer that no order of the calls explains is wrong."""

import json
from pathlib import Path

from torture.__main__ import main
from torture.auditor import ARCHIVE, FORGOTTEN, Auditor, out_of_order
from torture.checks import TOLD, Call, Checks, Reply, context_of
from torture.clients import Shared
from torture.histories import Histories, Write
from torture.report import Report

ANN = "ann"


def rated(histories: Histories, value: float | None, at: float, *, known: bool = True) -> None:
    histories.rated(ANN, {"dune": value}, at, at + 0.5, known=known)


def finds(histories: Histories, value: float | None, at: float) -> bool:
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


def test_with_an_item_go_its_ratings_from_before_and_no_others() -> None:
    for receipt in ("0-ratings", None):
        histories = Histories()
        rated(histories, 1.0, 1.0)
        histories.deleting("dune")
        histories.deleted("dune", 3.0, receipt, refused=False)
        # Until it is done, and of one without an answer where it never is.
        assert all(finds(histories, value, 4.0) for value in (1.0, None))
        rated(histories, 2.0, 40.0)
        assert not finds(histories, None, 41.0)
        histories.taken_back(41.5, known=receipt is not None)
        assert finds(histories, 2.0, 42.0)
    histories.deleting("dune")
    histories.deleted("dune", 52.0, "1-ratings", refused=False)
    histories.taken_back(53.0, known=True)
    # A read that began before it may be answered after it.
    assert [finds(histories, 2.0, at) for at in (52.5, 53.5)] == [True, False]
    # It had begun before: its order is not known.
    rated(histories, 4.0, 51.9)
    assert finds(histories, None, 54.0)


def test_events_stand_in_the_order_of_calls() -> None:
    first, second = Write(1.0, 1.0, 2.0), Write(2.0, 3.0, 4.0)
    beside = Write(3.0, 1.5, 3.5)
    assert out_of_order([(1, 1.0), (2, 3.0), (3, 2.0)], [first, second, beside]) is None
    assert out_of_order([(1, 3.0), (2, 1.0), (3, 2.0)], [first, second, beside]) is None
    assert out_of_order([(1, 2.0), (2, 1.0)], [first, second, beside]) is not None


def test_a_context_that_was_not_told_with_a_rating_is_found() -> None:
    for value in (1.0, 1.0 + 1e-9):
        for told in (None, {"mark": 7}, context_of(value)):
            checks = Checks(Report(seed=1))
            rated(checks.histories, value, 1.0)
            checks.histories.sent[ANN].add(value)
            rows = [{"item_id": "dune", "rating": value, "context": told}]
            checks.told(
                Call(1, "read", "GET", f"/users/{ANN}/ratings"), Reply(200, {"ratings": rows}, 2.0, 2.5)
            )
            found = [check for _, check, _ in checks.report.violations]
            assert found == ([] if told == context_of(value) else [TOLD]), (value, told)


def test_a_log_with_a_wrong_answer_is_judged_wrong(tmp_path: Path) -> None:
    row, log = {"user_id": ANN, "item_id": "dune"}, tmp_path / "calls.jsonl"
    wrong = (1.0, "a", ""), (2.0, "c", ""), (2.0, "a", "emma")
    for rating, title, listed in ((2.0, "b", ""), (2.0, "a", ""), *wrong):
        calls: list[tuple[str, str, object, int, object]] = [
            ("POST", "/ratings", [row | {"rating": 1.0}], 200, {"accepted": 1}),
            ("POST", "/ratings", row | {"rating": 2.0}, 200, {"accepted": 1}),
            ("GET", f"/users/{ANN}/ratings", None, 200, {"ratings": [row | {"rating": rating}]}),
            ("PUT", "/items/dune", {"title": "a"}, 200, {}),
            ("PUT", "/items/dune", {"title": "b"}, 0, "no answer"),
            ("GET", "/items/dune", None, 200, {"title": title}),
            ("PUT", "/items/emma", {"title": "a"}, 200, {}),
            ("DELETE", "/items/emma", None, 200, {"deleted": 1}),
            ("GET", "/latest", None, 200, {"items": [{"item_id": listed}]}),
        ]
        with log.open("w", encoding="utf-8") as file:
            for at, (method, path, body, status, answer) in enumerate(calls):
                sent = {"kind": "any", "method": method, "path": path, "body": body}
                file.write(json.dumps({"call": at, "clock": at, "sent": sent}) + "\n")
                told = {"status": status, "body": answer}
                file.write(json.dumps({"call": at, "clock": at + 0.5, "told": told}) + "\n")
        assert main(["judge", str(log)]) == ((rating, title, listed) in wrong)


def test_the_archive_has_no_event_twice_none_that_was_not_sent_and_none_of_before_an_erasure() -> None:
    shared = Shared(None, Checks(Report(seed=1)))  # type: ignore[arg-type]  # no call is made
    auditor = Auditor(None, None, shared, 1)  # type: ignore[arg-type]  # neither is looked at
    for value in (1.0, 2.0):
        rated(shared.checks.histories, value, value)
        shared.checks.histories.sent[ANN].add(value)
    for events, erased, wrong in (
        ([(1, 1.0), (2, 2.0)], {}, []),
        ([(1, 1.0), (1, 2.0)], {}, [ARCHIVE]),
        ([(1, 1.0), (2, 3.0)], {}, [ARCHIVE]),
        ([(1, 1.0), (2, 2.0)], {ANN: {1.0}}, [FORGOTTEN]),
        ([(2, 2.0)], {ANN: {1.0}}, []),
    ):
        shared.checks.report.violations.clear()
        auditor._check_user(ANN, events, shared.checks.histories.live, erased)
        assert [check for _, check, _ in shared.checks.report.violations] == wrong, events
