"""What a fitted model can do, whatever it was fitted to. Invariant: a row means the same for every kind of
model, so that one scorer, one ranker and one explanation serve all of them.
"""

from abc import ABC, abstractmethod

import numpy as np

from factors.errors import ModelUnreadable
from factors.inference.backend import HalfStepBackend
from factors.inference.context import shift_rows
from factors.inference.histories import Compressed
from factors.inference.side_moments import prior_rows
from factors.model.columns import Columns
from factors.model.links import link_of
from factors.model.parameters import SideName, from_model
from factors.model.quantized_rows import item_codec
from factors.model.types import Float32s, Float64s, Histories, Model


class PosteriorModel(ABC):
    """A `Model` that is ready for use. Made once for a model, by `factors.posterior_of`; safe to share
    between threads.

    `prior_user` (user_width,) and `prior_item` (item_width,): the stored rows of an unknown user and of an
    unknown item.
    """

    def __init__(self, model: Model) -> None:
        """Raises `ModelUnreadable` where a parameter is missing or has a wrong shape."""
        # Read once: all of this takes about as long as folding a user in, 0.13 ms.
        self.model = model
        self.parameters = from_model(model)
        self.link = link_of(self.parameters)
        self.item_codec = item_codec(self.parameters)
        self.prior_user: Float32s = prior_rows(self.parameters.users, 1)[0].astype(np.float32)
        self.prior_item: Float32s = self.item_codec.encode(prior_rows(self.parameters.items, 1))[0]

    def fold_in_users(
        self,
        items: Float32s,
        histories: Histories,
        *,
        current: Float32s | None = None,
        at: float | None = None,
        attributes: Columns | None = None,
        backend: HalfStepBackend | None = None,
    ) -> Float32s:
        """Return the rows (b, user_width) of users from their whole histories and the item table
        (n_items, item_width).

        An item row that is negative or beyond the table counts as an unknown item. An empty history gives the
        prior. `current` (b, user_width): the rows of these users so far, `prior_user` for a user without a
        row. The implicit effects in them are kept, because only a fit learns these; without `current` they
        are 0, and a user counts as one who was in the fit. `at`: seconds since 1970; the rows then keep the
        effect of the session of that time, for a prediction of that time (see `keeps_time`). `attributes`: of
        these users, as they were encoded for the fit; None for none. `backend`: what computes rows of many
        ratings, without `at`, from `current` on and to a thousandth of the noise; None for numpy.
        """
        known = self._known("user", attributes)
        rows = self._rows("user", items, histories, current, at, attributes=known, backend=backend)
        return rows.astype(np.float32)

    def fold_in_items(
        self,
        users: Float32s,
        histories: Histories,
        *,
        current: Float32s | None = None,
        attributes: Columns | None = None,
        backend: HalfStepBackend | None = None,
    ) -> Float32s:
        """Return the stored rows (b, item_width) of items from their whole histories, whose `other_row` are
        positions in `users` (n, user_width). `current` (b, item_width), `attributes` and `backend` as for
        users.
        """
        # Covariances are nine tenths of the rows so far, and only a backend begins with them.
        before = None
        if current is not None:
            before = self.item_codec.decode(current, covariance=backend is not None)
        known = self._known("item", attributes)
        rows = self._rows("item", users, histories, before, None, attributes=known, backend=backend)
        return self.item_codec.encode(rows)

    def _known(self, name: SideName, attributes: Columns | None) -> Columns | None:
        """Return `attributes` where the model has effects of such columns. Raises `ModelUnreadable` where it
        has effects of others.
        """
        width = self.parameters.side(name)[0].attribute_width
        if attributes is None or not width:
            return None
        if width != attributes.width:
            raise ModelUnreadable(f"{attributes.width} columns of attributes are not those of the model")
        return attributes

    @property
    def reads_context(self) -> bool:
        """Whether the context of a question moves its answer."""
        return self.parameters.context is not None

    def shift_users(self, users: Float32s, context: Float32s) -> Float32s:
        """Return `users` (m, user_width) as they rate in each `context` (m, fields), to be scored, ranked and
        explained with, never to be stored; `users` themselves where the model has no use for contexts.

        Fields beyond those of the fit, NaN and categories that it did not know count as not given.
        """
        moved = shift_rows(self.parameters.users.layout, users, self.parameters.context, context)
        return moved.astype(np.float32, copy=False)

    @abstractmethod
    def keeps_time(self, user: Float32s, time: float) -> bool:
        """Return whether the row `user` (user_width,) holds everything that its history says of a rating at
        `time`, in seconds since 1970.
        """

    @abstractmethod
    def entry_terms(
        self, items: Float32s, data: Compressed, current: Float32s | None, attributes: Columns | None = None
    ) -> tuple[Float64s, Float64s]:
        """Return what each entry of the one user history `data` adds to the linear term of the posterior and
        what it adds to the prior mean, both (n, k + 1). `attributes`: of the user, as for `fold_in_users`.

        With `S` the covariance of the user's row: its mean = the mean without ratings + the sum of the second
        + S times the sum of the first.
        """

    @abstractmethod
    def _rows(
        self,
        name: SideName,
        table: Float32s,
        histories: Histories,
        current: Float32s | None,
        at: float | None,
        *,
        attributes: Columns | None,
        backend: HalfStepBackend | None,
    ) -> Float64s:
        """Return the rows (b, width) of side `name`, not yet stored, from the stored `table` of the other."""
