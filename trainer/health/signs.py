"""What is wrong with a trainer, by its own metrics: for the page, which has no Prometheus to ask. Invariant:
the bounds are those of `deploy/prometheus/alerts.yml`, whose names these signs have.
"""

from collections.abc import Iterable, Mapping

from prometheus_client.core import Metric

# By the name of a metric, without what all have in front, and its label, "" for none.
Figures = Mapping[tuple[str, str], float]

PREFIX = "foldin_trainer_"
# Lines of the log that say that something was lost, damaged or taken away.
TROUBLES = frozenset(
    (
        *("segment_damaged", "archive_rebuild", "archive_adopted", "store_changed", "epoch_abandoned"),
        *("items_incomplete", "lease_lost", "term_ended", "upkeep_failed", "erasure_waits"),
        *("store_files_not_rewritten", "command_damaged", "ledger_damaged", "archive_waits", "fit_removed"),
    )
)
_LOGGED_FOR_S = 300.0
_BEHIND_S, _UNREAD_S = 20.0, 20.0
_LATE_S, _OPEN_S = 1_800.0, 600.0
_CLOCK_S = 10.0
# A fit that takes so many times as long as the last one, or as the first is thought to, hangs.
_TIMES, _LEAST_S, _FIRST_S = 10.0, 30.0, 60.0
_WORSE, _ENOUGH = 1.02, 1_000
# Names of files in one sentence.
_NAMED = 3


def figures_of(families: Iterable[Metric]) -> Figures:
    """Return the values of metrics."""
    return {
        (each.name.removeprefix(PREFIX), next(iter(each.labels.values()), "")): each.value
        for family in families
        for each in family.samples
    }


def signs_of(figures: Figures, now: float) -> dict[str, str]:
    """Return a sentence for each alert whose condition holds at `now`, in seconds since 1970."""

    def of(name: str, unknown: float = 0.0) -> float:
        return figures.get((name, ""), unknown)

    def labelled(name: str) -> dict[str, float]:
        return {label: value for (each, label), value in figures.items() if each == name}

    late = {name for name, at in labelled("event_timestamp_seconds").items() if now - at < _LOGGED_FOR_S}
    troubles = ", ".join(sorted(late & TROUBLES))
    unread = sorted(file for file, silent_s in labelled("unread_seconds").items() if silent_s > _UNREAD_S)
    files = ", ".join(unread[:_NAMED])
    behind_s, running_s, last_s = of("behind_seconds"), of("fit_running_seconds"), of("fit_seconds", _FIRST_S)
    unfitted_s, open_s, apart_s = (
        of("unfitted_seconds"),
        of("command_open_seconds"),
        of("clock_ahead_seconds"),
    )
    rmse = labelled("arriving_rmse")
    live, before, judged = rmse.get("live", 0.0), rmse.get("previous", 0.0), of("arriving_ratings")
    found = (
        (
            *("FoldinArchiveBehind", behind_s > _BEHIND_S),
            f"The trainer has not come to the ends of the streams for {behind_s:.0f} s.",
        ),
        (
            *("FoldinTrainerTrouble", troubles != ""),
            f"The trainer logged within the last five minutes: {troubles}.",
        ),
        (
            *("FoldinFileUnread", files != ""),
            f"The trainer cannot read {files} of its archive: mend or mount the disk.",
        ),
        (
            *("FoldinFitHangs", running_s > max(_LEAST_S, _TIMES * last_s)),
            f"A fit has run for {running_s:.0f} s, over ten times as long as the one before.",
        ),
        (
            *("FoldinRecordsProcess", "records_process_ended" in late),
            "The process that writes the records of users ended or stood still.",
        ),
        (
            *("FoldinFitLate", unfitted_s > _LATE_S),
            f"Ratings have waited {unfitted_s / 60:.0f} minutes for a refit: fits fail, or are held.",
        ),
        (
            *("FoldinCommandStuck", open_s > _OPEN_S),
            f"A call for a fit or an erasure has been open for {open_s / 60:.0f} minutes.",
        ),
        (
            *("FoldinClock", abs(apart_s) > _CLOCK_S),
            f"The clocks of trainer and store are {abs(apart_s):.0f} s apart.",
        ),
        (
            *("FoldinLiveWorse", live > _WORSE * before and judged >= _ENOUGH),
            f"Arriving ratings: the error is {live:.3f}, by the generation before it would be {before:.3f}.",
        ),
    )
    return {alert: text for alert, holds, text in found if holds}
