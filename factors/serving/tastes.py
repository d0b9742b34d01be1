"""How alike the tastes of users are. Invariant: the likeness of two users is that of what they are expected
to rate: any other basis of the latent space gives the same.

With `d = p_u - m`, by which a user's latent part departs from the average user's, and `C` the covariance of
the latent parts of the items over the items, `d_u' C d_v` is the covariance, over the items, of what the two
are expected to rate beyond the average user. Divided by the roots of the expected `d' C d` of either, the
user's uncertainty included, it is a correlation that shrinks where a user is little known. How much a user
likes all items, and how good an item is to all users, have no part in it.
"""

import numpy as np

from factors.model.layout import COUNT, FloatTable, pack
from factors.model.types import Float32s
from factors.posterior.posterior_model import PosteriorModel
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
        rated = np.flatnonzero(items[:, COUNT] > 0)
        rated = rated[:: max(1, -(-len(rated) // _MOST_ITEMS))]
        latent = items[rated, layout.latent].astype(np.float64)
        latent -= latent.mean(axis=0) if len(latent) else 0.0
        covariance = latent.T @ latent / max(1, len(latent))
        values, axes = np.linalg.eigh(covariance)
        # Its root, as a table of one column an axis.
        self._root = axes * np.sqrt(np.maximum(values, 0.0))
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
        directions = departure @ self._root
        square = np.einsum("ij,ij->i", directions, directions)
        square += np.maximum(packed @ self._weights, 0.0)
        known = square > self._least
        directions[~known] = 0.0
        directions[known] /= np.sqrt(square[known])[:, None]
        return np.asarray(directions, dtype=np.float32)
