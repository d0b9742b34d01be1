"""The first generation: what is known before any rating, so that services can answer.

Invariant: it is of the scale that the store has, made anew where that is decided after it.
"""

import numpy as np

from factors import FitSettings, prior_model
from featurestore.errors import GenerationBroken, GenerationUnknown
from featurestore.generations.manifest import Pointer
from featurestore.store import Store
from trainer import log
from trainer.fit_job.results import fit_in_memory
from trainer.publication.publish import Publisher
from trainer.retry import with_retries
from trainer.stage import Tools


async def publish_prior(tools: Tools) -> None:
    """Publish the prior in a store that has no generation, or that of another scale. Raises `LeaseLost`."""
    store = tools.store
    scale = await with_retries(store.scale.look)
    pointer = await with_retries(store.generations.live)
    if not pointer.epoch or (pointer.generation and not await _is_outdated(store, pointer)):
        return
    model = prior_model(FitSettings(scale))
    users, items = (np.zeros((0, width), np.float32) for width in (model.user_width, model.item_width))
    prior = await Publisher(store, tools.lease, tools.threads, step=tools.step).publish(
        pointer.epoch,
        fit_in_memory(model, users, items, []),
        engine=tools.settings.engine,
        positions={},
        folder=None,
        automatic=False,
    )
    log.event("prior_published", generation=prior.meta.summary.generation)


async def _is_outdated(store: Store, pointer: Pointer) -> bool:
    try:
        meta = await with_retries(store.generations.meta, pointer.epoch, pointer.generation)
    except (GenerationUnknown, GenerationBroken):
        # A fit takes its place.
        return False
    return store.scale.outdated(meta.model, meta.summary.n_ratings)
