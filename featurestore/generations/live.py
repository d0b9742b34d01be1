"""What a process holds of one generation. Invariant: everything in it is of that generation."""

from dataclasses import dataclass

from factors import Float32s, Model, PosteriorModel, Ranker, Scorer
from featurestore.generations.manifest import GenerationMeta


@dataclass(frozen=True, slots=True)
class LiveGeneration:
    """A generation that can be asked. `items` float32 (n_items, item_width), rows as they are stored.

    `items` and `ranker` follow the deltas in place; the model and the users' records stay those of the fit.
    """

    epoch: int
    generation: int
    posterior: PosteriorModel
    items: Float32s
    n_items: int
    scorer: Scorer
    ranker: Ranker
    meta: GenerationMeta

    @property
    def model(self) -> Model:
        """What the generation knows besides its tables."""
        return self.posterior.model
