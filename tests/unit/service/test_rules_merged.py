"""What a scenario leaves out, no call brings back (docs/api.md, the table of rules)."""

from typing import Any

import pytest

from service.rules.request import Diversity, RuleFields, merged, parse_rules

DRAMA = {"must": [{"key": "categories", "match": {"value": "drama"}}]}
NEW = {"must_not": [{"has_id": ["old"]}]}


def both(scenario: RuleFields, call: RuleFields) -> Any:
    return merged(parse_rules(call, {}), call, parse_rules(scenario, {}))


def test_an_item_must_pass_both_filters() -> None:
    scenario, call = RuleFields(filter=DRAMA), RuleFields(filter=NEW)
    parts = both(scenario, call).filter.must
    assert parts == (parse_rules(scenario, {}).filter, parse_rules(call, {}).filter)
    for alone in ((scenario, RuleFields()), (RuleFields(), scenario)):
        assert both(*alone).filter == parse_rules(scenario, {}).filter


def test_exclusions_are_joined_and_an_item_is_a_candidate_of_both() -> None:
    scenario = RuleFields(exclude_items=["a"], candidate_items=["a", "b", "c"])
    found = both(scenario, RuleFields(exclude_items=["b"], candidate_items=["d", "c", "b"]))
    assert (found.exclude, found.candidates) == ((b"a", b"b"), (b"c", b"b"))
    found = both(scenario, RuleFields(exclude_items=[]))
    assert (found.exclude, found.candidates) == ((b"a",), (b"a", b"b", b"c"))


@pytest.mark.parametrize(("scenario", "call", "cap"), [(2, 5, 2), (5, 2, 2), (None, 3, 3), (3, None, 3)])
def test_the_smaller_cap_holds(scenario: int | None, call: int | None, cap: int) -> None:
    assert both(RuleFields(per_category=scenario), RuleFields(per_category=call)).cap == cap


def test_the_other_fields_of_a_call_take_the_place_of_the_scenarios() -> None:
    scenario = RuleFields(order="rating", diversity=Diversity(0.5))
    found = both(scenario, RuleFields(diversity=Diversity(1.0)))
    assert (found.order, found.trade_off) == ("rating", None)
