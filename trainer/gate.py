"""Judge whether a fit may go live. Invariant: nothing passes that is not finite, complete and of use.

A fit is tried on ratings that it has not learned: against a baseline without factors, and against the live
generation on the newest ratings, which that one has not learned either.
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
    """How much worse a fit may be, as factors: `baseline` than the baseline's loss, `live` than the mean loss
    of the live generation, but for a difference of less than `sure` standard errors. With fewer held-out
    ratings than `enough` the losses say nothing and do not count.
    """

    # Above 1: where ratings follow no pattern, factors can only come out a little worse than biases.
    baseline: float = 1.05
    # Of a mean squared error, so 1 % of its root: two fits of the same ratings that began differently are
    # that far apart, and a newer one knows more users and items.
    live: float = 1.02
    # By chance alone at most one good fit in 700 is refused (one side of a normal), and that one is done
    # again.
    sure: float = 3.0
    # Of fewer the standard error of a loss is more than a tenth.
    enough: int = 100


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the gate looks at. Losses are NaN where there was nothing to measure on.

    `n_held_out`: how many ratings they were measured on. `live_ratio`: the mean loss over that of the live
    generation on the same `n_newest` of them; `live_ratio_error`: the standard error of its logarithm.
    """

    finite: bool
    n_users: int
    n_items: int
    expected_users: int
    expected_items: int
    n_held_out: int
    loss: float
    baseline_loss: float
    n_newest: int = 0
    live_ratio: float = 1.0
    live_ratio_error: float = 0.0


def judge(e: Evidence, policy: Policy) -> str | None:
    """Return why this fit must not go live; None if it may."""
    if not e.finite:
        return "some of its numbers are not finite"
    if e.n_users != e.expected_users or e.n_items < e.expected_items:
        return (
            f"it has {e.n_users} users and {e.n_items} items, not {e.expected_users} and {e.expected_items}"
        )
    if e.n_held_out < policy.enough:
        return None
    # Losses of nearly nothing (all ratings equal) are not compared by their ratio.
    slack = 1e-6
    if not e.loss <= policy.baseline * e.baseline_loss + slack:
        return (
            f"its loss on {e.n_held_out} unseen ratings is {e.loss:.4f}, "
            f"that of the baseline {e.baseline_loss:.4f}"
        )
    if e.n_newest >= policy.enough and e.live_ratio > policy.live:
        chance = math.exp(policy.sure * e.live_ratio_error)
        if e.live_ratio > chance:
            return (
                f"its mean loss on the {e.n_newest} newest ratings, which neither has learned, is "
                f"{e.live_ratio:.3f} times that of the live generation; by chance {chance:.3f} times at most"
            )
    return None


def refusal(result: FitResult, expected_items: int, policy: Policy) -> str | None:
    """Return why a fit must not go live; None if it may. Reads all of it: call it in a thread.

    `expected_items`: rows of the registry when its snapshot was taken.
    """
    metrics = result.metrics
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
        n_newest=int(metrics.get("newest", 0)),
        live_ratio=metrics.get("live_ratio", 1.0),
        live_ratio_error=metrics.get("live_ratio_error", 0.0),
    )
    return judge(evidence, policy)
