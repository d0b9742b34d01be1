"""Figures of generations and of experiments as Prometheus scrapes them.

Invariant: they are sums of the store, the same on every replica; labels are of what is kept, so bounded.
"""

import asyncio
from collections.abc import Iterable
from dataclasses import asdict

from prometheus_client.core import GaugeMetricFamily, Metric

from featurestore.errors import StoreError
from featurestore.experiments.definition import Experiment
from featurestore.experiments.tallies import Figure
from featurestore.store import Store
from service.metrics import gauge

OF_GENERATION = {
    "lists": ("foldin_generation_lists", "Lists that a generation has answered, in all replicas."),
    "shown": ("foldin_generation_shown_items", "Items that its lists were recorded to have shown."),
    "positives": ("foldin_generation_positives", "Items shown that a positive event followed in 7 days."),
    "distinct": ("foldin_generation_distinct_items", "Different items that it has shown, about."),
    "items": ("foldin_generation_items", "Items that it was fitted with."),
}
OF_ARM = {
    Figure.LISTS: ("foldin_arm_lists", "Lists that an arm has answered, in all replicas."),
    Figure.SHOWN: ("foldin_arm_shown_items", "Items that its lists were recorded to have shown."),
    Figure.POSITIVES: ("foldin_arm_positives", "Items shown that a positive event followed in 7 days."),
}


async def stored_figures(store: Store, running: Iterable[Experiment], timeout_s: float) -> list[Metric]:
    """Return the figures that the store has; none where it does not answer in time."""
    try:
        async with asyncio.timeout(timeout_s):
            showings = await store.showings.read()
            # Sums outlive their generations: labels are of those that are kept.
            kept = {each.generation: each.n_items for each in await store.generations.list()}
            tallies = {each: await store.tallies.read(each) for each in running}
    except (StoreError, TimeoutError):
        return []
    figures = {
        number: {**asdict(showings[number]), "items": kept[number]}
        for number in sorted(showings.keys() & kept.keys())
    }
    families: list[Metric] = [
        gauge(metric, text, "generation", {number: each[name] for number, each in figures.items()})
        for name, (metric, text) in OF_GENERATION.items()
    ]
    for figure, (metric, text) in OF_ARM.items():
        family = GaugeMetricFamily(metric, text, labels=["experiment", "arm"])
        for experiment, found in tallies.items():
            for arm, (tally, _) in zip(experiment.arms, found, strict=True):
                family.add_metric([experiment.name, arm.name], float(tally[figure].sum()))
        families.append(family)
    return families
