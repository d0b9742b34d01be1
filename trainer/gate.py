"""Judge whether a fit may go live. Invariant: nothing passes that is not finite, complete and of use.

The loss of a fit is measured on held-out ratings, and divided by the loss of a baseline without factors on
the same ratings: that ratio, unlike the loss, can be compared between fits of different days. Each fit has
held out ratings of its own, so that two ratios also differ by chance, the more the fewer ratings there were.
"""

import math
from dataclasses import dataclass

import numpy as np

from factors import all_finite_items
from trainer.fit_job.results import FitResult

# Rows looked at in one go: the flags take a byte a number, some 90 MB at rank 50.
_ROWS_AT_ONCE = 1 << 16


@dataclass(frozen=True, slots=True)
class Policy:
    """How much worse a fit may be, as factors: `baseline` than the baseline's loss, `previous` than the live
    generation's ratio, but for a difference of less than `sure` standard errors. With fewer held-out ratings
    than `enough` the losses say nothing and do not count.
    """

    # Above 1: where ratings follow no pattern, factors can only come out a little worse than biases.
    baseline: float = 1.05
    # Of many ratings chance explains next to nothing; but people may come to rate less predictably.
    previous: float = 1.15
    # By chance alone at most one good fit in 700 is refused (one side of a normal), and that one is done
    # again.
    sure: float = 3.0
    # Of 100 ratings the standard error of a ratio is 13 % in the environment: 1.5 times as much may be
    # chance.
    enough: int = 100


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the gate looks at. Losses are NaN where there was nothing to measure on.

    `n_held_out`: how many ratings they were measured on. `chance`: the standard error of the difference
    between the logarithms of the two ratios.
    """

    finite: bool
    n_users: int
    n_items: int
    expected_users: int
    expected_items: int
    n_held_out: int
    loss: float
    baseline_loss: float
    previous_ratio: float | None
    chance: float


def judge(evidence: Evidence, policy: Policy) -> str | None:
    """Return why this fit must not go live; None if it may."""
    if not evidence.finite:
        return "some of its numbers are not finite"
    if evidence.n_users != evidence.expected_users or evidence.n_items < evidence.expected_items:
        return (
            f"it has {evidence.n_users} users and {evidence.n_items} items, "
            f"not {evidence.expected_users} and {evidence.expected_items}"
        )
    if evidence.n_held_out < policy.enough:
        return None
    # Losses of nearly nothing (all ratings equal) are not compared by their ratio.
    slack = 1e-6
    if not evidence.loss <= policy.baseline * evidence.baseline_loss + slack:
        return (
            f"its loss on {evidence.n_held_out} unseen ratings is {evidence.loss:.4f}, "
            f"that of the baseline {evidence.baseline_loss:.4f}"
        )
    before, ratio = evidence.previous_ratio, loss_ratio(evidence.loss, evidence.baseline_loss)
    if before is not None and ratio is not None:
        worse = max(policy.previous, math.exp(policy.sure * evidence.chance))
        if ratio > worse * before + slack:
            return (
                f"its loss is {ratio:.3f} of the baseline's, that of the live generation was {before:.3f}: "
                f"more than {worse:.2f} times as much"
            )
    return None


def loss_ratio(loss: float, baseline_loss: float) -> float | None:
    """Return the loss relative to the baseline's; None where that says nothing."""
    if not (math.isfinite(loss) and math.isfinite(baseline_loss)) or baseline_loss <= 0:
        return None
    return loss / baseline_loss


def refusal(
    result: FitResult, expected_items: int, previous: dict[str, float] | None, policy: Policy
) -> str | None:
    """Return why a fit must not go live; None if it may. Reads all of it: call it in a thread.

    `expected_items`: rows of the registry when its snapshot was taken. `previous`: metrics of the live
    generation.
    """
    metrics = result.metrics
    before = previous or {}
    previous_ratio = None
    if before.get("unseen", 0) >= Policy().enough:
        previous_ratio = loss_ratio(before.get("loss", math.nan), before.get("baseline_loss", math.nan))
    finite = all_finite_items(result.model, result.items) and all(
        bool(np.isfinite(result.users[start : start + _ROWS_AT_ONCE]).all())
        for start in range(0, len(result.users), _ROWS_AT_ONCE)
    )
    evidence = Evidence(
        finite=finite,
        n_users=len(result.users),
        n_items=len(result.items),
        expected_users=len(result.user_n),
        expected_items=expected_items,
        n_held_out=int(metrics.get("unseen", 0)),
        loss=metrics.get("loss", math.nan),
        baseline_loss=metrics.get("baseline_loss", math.nan),
        previous_ratio=previous_ratio,
        # Independent, so their variances add up.
        chance=math.hypot(*(each.get("loss_ratio_error", 0.0) for each in (metrics, before))),
    )
    return judge(evidence, policy)
