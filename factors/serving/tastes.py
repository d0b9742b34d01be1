"""How alike the tastes of users are. Invariant: the likeness of two users is that of what they are expected
to rate: any other basis of the latent space gives the same.

With `d = p_u - m`, by which a user's latent part departs from the average user's, and `C` the covariance of
the latent parts of the items over the items, `d_u' C d_v` is the covariance, over the items, of what the two
are expected to rate beyond the average user. Divided by the roots of the expected `d' C d` of either, the
user's uncertainty included, it is a correlation that shrinks where a user is little known. How much a user
likes all items, and how good an item is to all users, have no part in it.

Where there are no ratings, the same of the relevance of the items (`HeadTastes`): `d` is how the user's
vector in the ranking head departs from that of a user of whom nothing is known.
"""

import numpy as np

from factors.model.layout import COUNT, FloatTable, pack
from factors.model.types import Float32s, Float64s, Histories, Int64s
from factors.posterior.posterior_model import PosteriorModel
from factors.ranking.head import RankingHead
from factors.serving.posterior_draw import packed_weights

# Their covariance is known to half a percent.
_MOST_ITEMS = 1 << 16
# Of the mean eigenvalue of the covariance: what is below is rounding.
_LEAST = 1e-9


class Tastes:
    """Compares users of one model over one item table `items` (n, item_width), of which it keeps the
    covariance alone. Of more than 65,536 rated items it reads an even sample.
    """

    def __init__(self, posterior: PosteriorModel, items: Float32s) -> None:
        layout = posterior.parameters.items.layout
        rated = _sample(np.flatnonzero(items[:, COUNT] > 0))
        covariance, self._root = _spread(items[rated, layout.latent].astype(np.float64))
        self._weights = packed_weights(pack(covariance[None])[0], layout.rank)
        self._least = _LEAST * float(np.trace(covariance)) / max(1, layout.rank)
        users = posterior.parameters.users
        self._layout, self._average = users.layout, users.mean[:-1]

    def directions(self, users: FloatTable) -> Float32s:
        """Return a vector (u, rank) of each of `users` (u, user_width), whose products are their likeness: 1
        the same taste, 0 none in common, -1 the opposite. 0 for an average user, and where no item is rated.
        """
        layout = self._layout
        departure = users[:, layout.latent].astype(np.float64) - self._average
        # The latent block comes first.
        packed = users[:, layout.covariance][:, : len(self._weights)].astype(np.float64)
        return _shrunk(departure @ self._root, packed @ self._weights, self._least)


class HeadTastes:
    """Compares users by the events that a ranking head has learned, of which it keeps the covariance of the
    items' factors and the average user alone. Of more than 65,536 items with events it reads an even sample.
    """

    def __init__(self, head: RankingHead) -> None:
        chosen = _sample(np.flatnonzero(head.items.any(axis=1)))
        self._covariance, self._root = _spread(head.items[chosen].astype(np.float64))
        self._least = _LEAST * float(np.trace(self._covariance)) / head.parameters.rank
        nothing = Histories(np.zeros(2, np.int64), np.zeros(0, np.int32), np.zeros(0), np.zeros(0))
        self._average = head.fold_in_users(nothing)[0]
        self.rank = head.parameters.rank

    def directions(self, head: RankingHead, histories: Histories) -> Float32s:
        """Return a vector (u, r) of each user with one of these histories, see `Tastes.directions`; 0 of one
        without events. `head`: the same, be it with newer items.
        """
        vectors, variances = head.fold_in_spread(histories, self._covariance)
        return _shrunk((vectors - self._average) @ self._root, variances, self._least)


def _sample(rows: Int64s) -> Int64s:
    return rows[:: max(1, -(-len(rows) // _MOST_ITEMS))]


def _spread(latent: Float64s) -> tuple[Float64s, Float64s]:
    """Return the covariance (k, k) of items (m, k), and its root, as a table of one column an axis."""
    latent = latent - (latent.mean(axis=0) if len(latent) else 0.0)
    covariance = latent.T @ latent / max(1, len(latent))
    values, axes = np.linalg.eigh(covariance)
    return covariance, axes * np.sqrt(np.maximum(values, 0.0))


def _shrunk(departures: Float64s, variances: Float64s, least: float) -> Float32s:
    """Return departures (u, k) as directions: divided by the roots of their expected squares."""
    square = np.einsum("ij,ij->i", departures, departures) + np.maximum(variances, 0.0)
    known = square > least
    directions = np.zeros_like(departures)
    directions[known] = departures[known] / np.sqrt(square[known])[:, None]
    return np.asarray(directions, dtype=np.float32)
