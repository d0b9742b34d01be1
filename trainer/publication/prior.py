"""The first generation: what is known before any rating, so that services can answer."""

import numpy as np

from factors import FitSettings, Scale, prior_model
from featurestore.leases import Lease
from featurestore.store import Store
from trainer import log
from trainer.archive.segments import Step
from trainer.fit_job.results import fit_in_memory
from trainer.publication.publish import Publisher
from trainer.retry import with_retries
from trainer.settings import TrainerSettings
from trainer.threads import Threads


async def publish_prior(
    store: Store, lease: Lease, settings: TrainerSettings, threads: Threads, step: Step
) -> None:
    """Publish the prior in a store that has no generation. Raises `LeaseLost`."""
    pointer = await with_retries(store.generations.live)
    if pointer.generation or not pointer.epoch:
        return
    model = prior_model(FitSettings(Scale(*settings.scale)))
    users, items = (np.zeros((0, width), np.float32) for width in (model.user_width, model.item_width))
    prior = await Publisher(store, lease, threads, step=step).publish(
        pointer.epoch,
        fit_in_memory(model, users, items, []),
        engine=settings.engine,
        positions={},
        folder=None,
        automatic=False,
    )
    log.event("prior_published", generation=prior.meta.summary.generation)
