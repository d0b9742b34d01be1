"""Experiments: who is in which arm, and what is read of the store."""

import msgspec
import numpy as np
import pytest

from featurestore.errors import StoreDamaged
from featurestore.experiments.definition import (
    Arm,
    Definition,
    Experiment,
    read_experiments,
    require_readable,
)

FIXED = [0, -1, 0, -1, 0, 1, 1, 0, 1, 1, 1, 1, 1, 1, 0, 1]
USERS = [b"user-%d" % k for k in range(20_000)]


def split(name: str, *shares: float) -> Experiment:
    arms = tuple(Arm(f"arm-{k}", share, f"s{k}") for k, share in enumerate(shares))
    return Experiment(name, Definition(arms, 1e9))


def arms_of(experiment: Experiment) -> np.ndarray:
    return np.array([experiment.arm_of(experiment.mark_of(user_id)) for user_id in USERS])


@pytest.mark.parametrize("shares", [(0.5, 0.5), (0.1, 0.7, 0.2), (0.05, 0.05), (0.7, 0.1, 0.2)])
def test_arms_have_their_shares_and_who_is_left_is_in_none(shares: tuple[float, ...]) -> None:
    arms = arms_of(split("one", *shares))
    left = 1.0 - sum(shares)
    for arm, share in [*enumerate(shares), (-1, left)]:
        # Five standard deviations of a share of 20,000.
        assert abs(np.mean(arms == arm) - share) < 5 * np.sqrt(share * (1 - share) / len(USERS)) + 1e-9


def test_one_user_has_one_arm_for_ever() -> None:
    experiment = split("one", 0.3, 0.4)
    # Another release must not move users between arms.
    assert [experiment.arm_of(experiment.mark_of(b"%d" % k)) for k in range(16)] == FIXED


def test_two_experiments_split_users_apart_from_each_other() -> None:
    one, other = arms_of(split("one", 0.5, 0.5)), arms_of(split("other", 0.5, 0.5))
    both = np.mean((one == 1) & (other == 1))
    assert abs(both - 0.25) < 5 * np.sqrt(0.25 * 0.75 / len(USERS))


def stored(**more: object) -> bytes:
    arms = [{"name": "a", "share": 0.5, "scenario": "x"}, {"name": "b", "share": 0.5, "scenario": "y"}]
    return msgspec.json.encode({"arms": arms, "began": 1.0, **more})


def test_what_cannot_be_read_is_told_and_does_nothing() -> None:
    mixed = (
        b'{"arms":[{"name":"a","share":1,"scenario":"x"},{"name":"b","share":1,"generation":2}],"began":1}'
    )
    fields = {
        b"good": stored(scenario="home"),
        b"later": stored(field_of_a_later_version=1),
        b"text": b"no json",
        b"share": stored().replace(b"0.5", b"7.5"),
        b"mixed": mixed,
        b"\xff": stored(),
        b"": b"left",
    }
    found = read_experiments(fields)
    assert [each.name for each in found.running] == ["good", "later"]
    assert found.by_scenario.keys() == {"home", None}
    assert found.default_scenario == "left"
    assert {*found.damaged} == {"text", "share", "mixed", "\ufffd"}
    require_readable(found, "good", b"key")
    with pytest.raises(StoreDamaged, match="text"):
        require_readable(found, "text", b"key")


def test_the_version_tells_two_sets_apart() -> None:
    sets = [{}, {b"a": stored()}, {b"b": stored()}, {b"a": stored(scenario="x")}, {b"a": b"", b"b": b""}]
    versions = [read_experiments(fields).version for fields in sets]
    assert len({*versions}) == len(sets)
    assert versions == [read_experiments(fields).version for fields in sets]
