"""The choice of a model's kind, and a fit with its tables. Invariant: a kind is chosen here and only here."""

from dataclasses import dataclass, field
from functools import cached_property

from factors.model.types import Float32s, Model
from factors.posterior.implicit_feedback import ImplicitPosterior
from factors.posterior.posterior_model import PosteriorModel
from factors.posterior.rating_posterior import RatingPosterior


def posterior_of(model: Model) -> PosteriorModel:
    """Return the posterior model of `model`. Raises `ModelUnreadable`."""
    return ImplicitPosterior(model) if model.feedback == "implicit" else RatingPosterior(model)


# Without slots: `posterior` is kept among the attributes once it was asked for.
@dataclass(frozen=True)
class Fitted:
    """A fit: the model, `users` float32 (n_users, user_width), `items` float32 (n_items, item_width) as they
    are stored, and its metrics.
    """

    model: Model
    users: Float32s
    items: Float32s
    metrics: dict[str, float] = field(default_factory=dict)

    @cached_property
    def posterior(self) -> PosteriorModel:
        """The model, ready for use."""
        return posterior_of(self.model)
