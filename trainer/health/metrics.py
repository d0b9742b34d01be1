"""The metrics of a trainer. Invariant: labels are partitions, places that fill up, the two generations
compared, names of log lines, servers of the store and files that cannot be read, all bounded in number.

The trainer asks nothing of this: it reads what the parts of a term say of themselves.
"""

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence

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
    found = {} if trainer.root is None else trainer.root.unread_s()
    longest = sorted(found, key=lambda name: found[name])[-_SHOWN:]
    text = "For how long files of the archive could not be read that are waited for."
    yield _gauges("unread_seconds", text, "file", {file: found[file] for file in longest})
    yield from _of_servers(trainer.store_servers)
    lines = dict(sorted(log.logged().items()))
    counts = CounterMetricFamily(
        "foldin_trainer_events", "Lines of the log by name, whatever is shown of them.", labels=["event"]
    )
    for name, logged in lines.items():
        counts.add_metric([name], logged.count)
    yield counts
    last = {name: logged.at for name, logged in lines.items()}
    yield _gauges("event_timestamp_seconds", "When the last line of a name was logged.", "event", last)


def _of_servers(servers: Sequence[StoreServer]) -> Iterator[Metric]:
    """What the servers of the store are; of one server that no other shares slots with its memory."""
    if not servers:
        return
    answering = [each for each in servers if each.answers]
    memory = {each.address: each.used_bytes for each in answering}
    slots = {each.address: each.slots for each in answering if each.slots}
    replicas = {each.address: sum(it.online for it in each.replicas) for each in answering if each.slots}
    yield _gauges("store_used_bytes", "Memory of a server of the store.", "server", memory)
    yield _gauges("store_slots", "Slots of a server of the cluster that answers.", "server", slots)
    yield _gauges("store_replicas", "Replicas that follow a server of the cluster.", "server", replicas)
    behind = GaugeMetricFamily(
        "foldin_trainer_store_replica_behind_bytes",
        "What a replica has not got yet of what its primary wrote.",
        labels=["server", "replica"],
    )
    for each in servers:
        for replica in each.replicas:
            behind.add_metric([each.address, replica.address], replica.behind_bytes)
    yield behind
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
    free: dict[str, float] = {space.reason: space.free_bytes for space in room.spaces}
    yield _gauges("free_bytes", "What is free, by what may fill up.", "place", free)
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
    arrived = {str(partition): ms / 1000 for partition, (ms, _) in sorted(consumer.positions.items())}
    text = "Arrival of the newest archived event, by the store's clock."
    yield _gauges("archive_position_seconds", text, "partition", arrived)


def _of_arriving(term: Term, generation: int) -> Iterator[Metric]:
    """How well the live generation and the one before it predict the ratings that arrive."""
    compared = term.arriving.comparison
    if compared is None or compared.generation != generation:
        return
    text = (
        "Root mean squared error of ratings that arrived since the flip, predicted before they were learned."
    )
    yield _gauges("arriving_rmse", text, "which", compared.rmse)
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


def _gauges(name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    """Return a metric with a value for each that a label names."""
    family = GaugeMetricFamily(f"foldin_trainer_{name}", text, labels=[label])
    for each, value in values.items():
        family.add_metric([each], value)
    return family
