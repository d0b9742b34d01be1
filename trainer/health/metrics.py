"""The metrics of a trainer. Invariant: labels are partitions, places that fill up, the two generations
compared, names of log lines, servers of the store and files that cannot be read, all bounded in number.

The trainer asks nothing of this: it reads what the parts of a term say of themselves.
"""

import contextlib
import time
from collections.abc import Iterator, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from featurestore.telemetry.points import StoreServer, skew, uncovered
from trainer import log
from trainer.app import Trainer
from trainer.archive.epoch_archive import Snapshot
from trainer.term import Term

# Of files that cannot be read, those that are waited for longest: of a disk that is away it is all.
_SHOWN = 20
# Hexadecimal digits of a run of the store: a float64 has 53 bits.
_RUN_DIGITS = 12


def of_process(trainer: Trainer) -> Iterator[Metric]:
    """What holds whether or not this trainer leads."""
    leads = trainer.term is not None
    yield _gauge("start_timestamp_seconds", "When this trainer was started.", trainer.started_at)
    yield _gauge("leading", "Whether this trainer leads.", float(leads))
    if leads and trainer.leadership is not None:
        yield _gauge("fence", "Number of its lease.", trainer.leadership.lease.fence)
        yield _gauge("lease_left_seconds", "For how long its lease still holds.", trainer.leadership.left_s)
    unread = GaugeMetricFamily(
        "foldin_trainer_unread_seconds",
        "For how long files of the archive could not be read that are waited for.",
        labels=["file"],
    )
    found = {} if trainer.root is None else trainer.root.unread_s()
    for file in sorted(found, key=lambda name: found[name])[-_SHOWN:]:
        unread.add_metric([file], found[file])
    yield unread
    yield from _of_servers(trainer.store_servers)
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


def _of_servers(servers: Sequence[StoreServer]) -> Iterator[Metric]:
    """What the servers of the store are; of one server that no other shares slots with its memory."""
    if not servers:
        return
    memory = GaugeMetricFamily(
        "foldin_trainer_store_used_bytes", "Memory of a server of the store.", labels=["server"]
    )
    slots = GaugeMetricFamily(
        "foldin_trainer_store_slots", "Slots of a server of the cluster that answers.", labels=["server"]
    )
    followed = GaugeMetricFamily(
        "foldin_trainer_store_replicas", "Replicas that follow a server of the cluster.", labels=["server"]
    )
    behind = GaugeMetricFamily(
        "foldin_trainer_store_replica_behind_bytes",
        "What a replica has not got yet of what its primary wrote.",
        labels=["server", "replica"],
    )
    for each in servers:
        if each.answers:
            memory.add_metric([each.address], each.used_bytes)
        for replica in each.replicas:
            behind.add_metric([each.address, replica.address], replica.behind_bytes)
        if each.slots and each.answers:
            slots.add_metric([each.address], each.slots)
            followed.add_metric([each.address], sum(replica.online for replica in each.replicas))
    yield from (memory, slots, followed, behind)
    text = "Slots of the cluster for which no server answers."
    yield _gauge("store_uncovered_slots", text, uncovered(servers))
    yield _gauge("store_skew", "Memory of the fullest server over the mean.", skew(servers))


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
    if room.store_run is not None:
        run = int(room.store_run[:_RUN_DIGITS], 16)
        text = "A number of the store's server: another one after its start, and after a promotion."
        yield _gauge("store_run", text, run)
    free = GaugeMetricFamily(
        "foldin_trainer_free_bytes", "What is free, by what may fill up.", labels=["place"]
    )
    for space in room.spaces:
        free.add_metric([space.reason], space.free_bytes)
    yield free
    yield _gauge("trash_bytes", "What the trash of the archive holds.", term.upkeep.trash_bytes)
    if live is None:
        return
    yield from _of_arriving(term, live.generation)
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
        max(0, consumer.archived_events - max(live.fitted_events, term.refitter.schedule.learned_events)),
    )
    position = GaugeMetricFamily(
        "foldin_trainer_archive_position_seconds",
        "Arrival of the newest archived event, by the store's clock.",
        labels=["partition"],
    )
    for partition, (arrived_ms, _) in sorted(consumer.positions.items()):
        position.add_metric([str(partition)], arrived_ms / 1000)
    yield position


def _of_arriving(term: Term, generation: int) -> Iterator[Metric]:
    """How well the live generation and the one before it predict the ratings that arrive."""
    compared = term.arriving.comparison
    if compared is None or compared.generation != generation:
        return
    error = GaugeMetricFamily(
        "foldin_trainer_arriving_rmse",
        "Root mean squared error of ratings that arrived since the flip, predicted before they were learned.",
        labels=["which"],
    )
    for which, value in compared.rmse.items():
        error.add_metric([which], value)
    yield error
    yield _gauge("arriving_ratings", "How many ratings that error is of.", compared.ratings)


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
