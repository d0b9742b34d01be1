"""The metrics of a trainer. Invariant: labels are partitions, places that fill up and names of log lines, all
bounded in number.

The trainer asks nothing of this: it reads what the parts of a term say of themselves.
"""

import contextlib
import time
from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from trainer import log
from trainer.app import Trainer
from trainer.archive.epoch_archive import Snapshot
from trainer.term import Term


def of_process(trainer: Trainer) -> Iterator[Metric]:
    """What holds whether or not this trainer leads."""
    leads = trainer.term is not None
    yield _gauge("leading", "Whether this trainer leads.", float(leads))
    if leads and trainer.leadership is not None:
        yield _gauge("fence", "Number of its lease.", trainer.leadership.lease.fence)
        yield _gauge("lease_left_seconds", "For how long its lease still holds.", trainer.leadership.left_s)
    lines = log.logged()
    counts = CounterMetricFamily(
        "foldin_trainer_events", "Lines of the log by name, whatever is shown of them.", labels=["event"]
    )
    last = GaugeMetricFamily(
        "foldin_trainer_event_timestamp_seconds", "When the last line of a name was logged.", labels=["event"]
    )
    for name, logged in sorted(lines.items()):
        counts.add_metric([name], logged.count)
        last.add_metric([name], logged.at)
    yield counts
    yield last


def of_term(term: Term) -> Iterator[Metric]:
    """What the parts of a term say: fits, room, and how far the archive of the live epoch is."""
    now = time.monotonic()
    refitter, room, live = term.refitter, term.room, term.switch.live
    yield _gauge("fit_failures", "Fits in a row that were not published.", refitter.schedule.failures)
    if refitter.fitting_since is not None:
        yield _gauge("fit_running_seconds", "Since when a fit runs.", now - refitter.fitting_since)
    if refitter.last_fit_s is not None:
        yield _gauge("fit_seconds", "What the last published fit took.", refitter.last_fit_s)
    first_new_at = refitter.schedule.first_new_at
    waiting_s = 0.0 if first_new_at is None else now - first_new_at
    yield _gauge("unfitted_seconds", "Age of the oldest event that no live fit has learned.", waiting_s)
    oldest_ms = term.commands.oldest_open_ms
    open_s = 0.0 if oldest_ms is None else max(0.0, time.time() - room.clock_ahead_s - oldest_ms / 1000)
    yield _gauge("command_open_seconds", "Age of the oldest command that is not carried out.", open_s)
    yield _gauge("clock_ahead_seconds", "This host's clock minus the store's.", room.clock_ahead_s)
    free = GaugeMetricFamily(
        "foldin_trainer_free_bytes", "What is free, by what may fill up.", labels=["place"]
    )
    for space in room.spaces:
        free.add_metric([space.reason], space.free_bytes)
    yield free
    yield _gauge("trash_bytes", "What the trash of the archive holds.", term.upkeep.trash_bytes)
    if live is None:
        return
    yield _gauge("live_generation", "Generation that is live.", live.generation)
    yield _gauge("live_created_timestamp_seconds", "When it was published.", live.meta.summary.created)
    yield _gauge("live_ratings", "Ratings that it has learned.", live.meta.summary.n_ratings)
    epoch = term.epochs.opened(live.epoch)
    if epoch is None:
        return
    consumer = epoch.consumer
    yield _gauge(
        "behind_seconds", "Since when the streams were not read to their ends.", now - consumer.caught_up_at
    )
    yield _gauge("archived_events", "Events in the archive of the live epoch.", consumer.archived_events)
    yield _gauge(
        "unfitted_events",
        "Archived events that the live fit has not learned.",
        max(0, consumer.archived_events - live.fitted_events),
    )
    position = GaugeMetricFamily(
        "foldin_trainer_archive_position_seconds",
        "Arrival of the newest archived event, by the store's clock.",
        labels=["partition"],
    )
    for partition, (arrived_ms, _) in sorted(consumer.positions.items()):
        position.add_metric([str(partition)], arrived_ms / 1000)
    yield position


def of_archive(snapshot: Snapshot) -> Iterator[Metric]:
    """The files of an archive. Blocking: call in a thread."""
    size = 0
    for path in snapshot.paths:
        # A merge may take files away meanwhile.
        with contextlib.suppress(OSError):
            size += path.stat().st_size
    yield _gauge("archive_segments", "Files of the archive of the live epoch.", len(snapshot.paths))
    yield _gauge("archive_bytes", "Their bytes.", size)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"foldin_trainer_{name}", text, value=value)
