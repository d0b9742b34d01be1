"""Experiments: who is in which arm, and what is read of the store."""

import numpy as np

from featurestore.experiments.definition import Arm, Definition, Experiment

FIXED = [0, -1, 0, -1, 0, 1, 1, 0, 1, 1, 1, 1, 1, 1, 0, 1]
USERS = [b"user-%d" % k for k in range(20_000)]


def split(name: str, *shares: float) -> Experiment:
    arms = tuple(Arm(f"arm-{k}", share, f"s{k}") for k, share in enumerate(shares))
    return Experiment(name, Definition(arms, 1e9))


def arms_of(experiment: Experiment) -> np.ndarray:
    return np.array([experiment.arm_of(experiment.mark_of(user_id)) for user_id in USERS])


def is_share(users: np.ndarray, share: float) -> bool:
    return bool(abs(np.mean(users) - share) < 5 * np.sqrt(share * (1 - share) / len(USERS)) + 1e-9)


def test_arms_have_their_shares_and_experiments_split_users_apart_from_each_other() -> None:
    for shares in ((0.5, 0.5), (0.1, 0.7, 0.2), (0.05, 0.05)):
        arms = arms_of(split("one", *shares))
        for arm, share in [*enumerate(shares), (-1, 1.0 - sum(shares))]:
            assert is_share(arms == arm, share)
    one, other = arms_of(split("one", 0.5, 0.5)), arms_of(split("other", 0.5, 0.5))
    assert is_share((one == 1) & (other == 1), 0.25)


def test_one_user_has_one_arm_for_ever() -> None:
    experiment = split("one", 0.3, 0.4)
    assert [experiment.arm_of(experiment.mark_of(b"%d" % k)) for k in range(16)] == FIXED
