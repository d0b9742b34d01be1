"""Users are alike by what they are expected to rate, whatever the basis of the latent space."""

import numpy as np
import pytest

from factors import Fitted, Scorer, Tastes
from factors.model.layout import COUNT
from tests.unit.factors.factors_world import fitted_of, ratings_of

ITEMS = 120


@pytest.fixture(scope="module")
def fitted() -> Fitted:
    ratings = ratings_of(5, n_users=80, n_items=ITEMS, n=5000, timed=False)
    return fitted_of(ratings, n_users=80, n_items=ITEMS, sweeps=12)


def departures(fitted: Fitted) -> np.ndarray:
    """What each user is expected to rate of each item beyond the average user, before the link."""
    scorer = Scorer(fitted.posterior, fitted.items)
    users = np.vstack([fitted.users, fitted.posterior.prior_user[None]])
    rows = np.flatnonzero(fitted.items[:, COUNT] > 0)
    user, item = np.divmod(np.arange(len(users) * len(rows)), len(rows))
    mean = scorer.latent(users, user, rows[item])[0].reshape(len(users), len(rows))
    return np.asarray(mean[:-1] - mean[-1])


def test_it_is_the_correlation_of_what_they_are_expected_to_rate(fitted: Fitted) -> None:
    directions = Tastes(fitted.posterior, fitted.items).directions(fitted.users).astype(np.float64)
    likeness = directions @ directions.T
    sizes = np.sqrt(np.diag(likeness))
    np.testing.assert_allclose(likeness / np.outer(sizes, sizes), np.corrcoef(departures(fitted)), atol=2e-3)
    # Who is little known is alike to no one, not to itself either.
    assert (sizes < 1.0).all()
    few = np.argsort(fitted.users[:, COUNT])
    assert sizes[few[:20]].mean() < sizes[few[-20:]].mean()


def test_a_cosine_of_the_latent_parts_would_be_another(fitted: Fitted) -> None:
    """What the test above would say of it: a fit leaves its axes as unequal as they came."""
    latent = fitted.users[:, fitted.posterior.parameters.users.layout.latent].astype(np.float64)
    latent -= fitted.posterior.parameters.users.mean[:-1]
    sizes = np.linalg.norm(latent, axis=1)
    cosine = latent @ latent.T / np.outer(sizes, sizes)
    assert np.abs(cosine - np.corrcoef(departures(fitted))).max() > 0.05


def test_who_is_average_has_no_neighbour(fitted: Fitted) -> None:
    tastes = Tastes(fitted.posterior, fitted.items)
    np.testing.assert_allclose(tastes.directions(fitted.posterior.prior_user[None]), 0.0, atol=1e-6)
    nothing = np.zeros_like(fitted.items)
    assert not Tastes(fitted.posterior, nothing).directions(fitted.users).any()
    assert tastes.directions(fitted.users[:0]).shape == (0, 3)
