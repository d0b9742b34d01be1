"""The gate before a fit goes live. Invariant: nothing passes that is not finite, complete and of use.

The loss of a fit is measured on ratings that it has not seen, and set in relation to that of a baseline
without factors on the same ratings: that ratio, unlike the loss, can be compared between fits of different
days. Each was measured on ratings of its own, so they differ by chance too, the more the fewer there were.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from factors import all_finite_items
from trainer.fit_job.results import FitResult

# Rows looked at in one go: some 64 MB of a wide table.
_ROWS_AT_ONCE = 1 << 16


@dataclass(frozen=True, slots=True)
class Policy:
    """How much worse a fit may be, as factors: `baseline` than the baseline's loss, `previous` than the live
    generation's ratio, but for a difference of less than `sure` standard errors. With fewer unseen ratings
    than `enough` the losses say nothing and do not count.
    """

    baseline: float = 1.05
    previous: float = 1.15
    sure: float = 3.0
    enough: int = 100


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the gate looks at. Losses are NaN where there was nothing to measure on.

    `chance`: the standard error of the difference between the logarithms of the two ratios.
    """

    finite: bool
    n_users: int
    n_items: int
    expected_users: int
    expected_items: int
    unseen: int
    loss: float
    baseline_loss: float
    previous_ratio: float | None
    chance: float


def judge(evidence: Evidence, policy: Policy) -> str | None:
    """Why this fit must not go live; None if it may."""
    if not evidence.finite:
        return "some of its numbers are not finite"
    if evidence.n_users != evidence.expected_users or evidence.n_items < evidence.expected_items:
        return (
            f"it has {evidence.n_users} users and {evidence.n_items} items, "
            f"not {evidence.expected_users} and {evidence.expected_items}"
        )
    return None if evidence.unseen < policy.enough else _judge_losses(evidence, policy)


def _judge_losses(evidence: Evidence, policy: Policy) -> str | None:
    # Losses of nearly nothing (all ratings equal) are not compared by their ratio.
    slack = 1e-6
    if not evidence.loss <= policy.baseline * evidence.baseline_loss + slack:
        return (
            f"its loss on {evidence.unseen} unseen ratings is {evidence.loss:.4f}, "
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
    """Loss relative to the baseline's; None where that says nothing."""
    if not (math.isfinite(loss) and math.isfinite(baseline_loss)) or baseline_loss <= 0:
        return None
    return loss / baseline_loss


def gather(result: FitResult, expected_items: int, previous: dict[str, float] | None) -> Evidence:
    """Look at a fit as it will be published. Reads all of it: call it in a thread."""
    metrics = result.metrics
    before = previous or {}
    errors = [each.get("loss_ratio_error", 0.0) for each in (metrics, before)]
    return Evidence(
        finite=all_finite(result.users) and all_finite_items(result.model, result.items),
        n_users=len(result.users),
        n_items=len(result.items),
        expected_users=len(result.user_n),
        expected_items=expected_items,
        unseen=int(metrics.get("unseen", 0)),
        loss=metrics.get("loss", math.nan),
        baseline_loss=metrics.get("baseline_loss", math.nan),
        previous_ratio=loss_ratio(before.get("loss", math.nan), before.get("baseline_loss", math.nan))
        if before.get("unseen", 0) >= Policy().enough
        else None,
        chance=math.hypot(*errors),
    )


def all_finite(table: npt.NDArray[Any]) -> bool:
    """Whether every number is finite, without a copy of the whole table."""
    return all(
        bool(np.isfinite(table[start : start + _ROWS_AT_ONCE]).all())
        for start in range(0, len(table), _ROWS_AT_ONCE)
    )
