"""Each alert of the deployment fires on recorded series of its fault, in its time, and on no other's."""

import json
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.support.servers import missing
from trainer.health import signs

ROOT = Path(__file__).resolve().parents[2]
ALERTS = ROOT / "deploy/prometheus/alerts.yml"
# As deploy/prometheus/prometheus.yml has it: a sample, and a look at the rules.
STEP_S = 5
# All is well until then; by then rates over ten minutes are whole.
WELL_S = 900
# By promise, for faults of the torture.
WITHIN_S = 60
DAY_S = 86_400

LOOKUPS = 'foldin_lookup_seconds_bucket{instance="a",le="%s"}'
PREDICTS = 'foldin_http_request_seconds_bucket{instance="a",route="/predict",le="%s"}'
ANSWERS = 'foldin_http_requests_total{instance="a",route="/predict",status="%s"}'
LAG = 'foldin_stream_lag_events{instance="a",partition="0"}'
ARRIVING = 'foldin_trainer_arriving_rmse{which="%s"}'
EVENT = 'foldin_trainer_event_timestamp_seconds{event="%s"}'
UNREAD = 'foldin_trainer_unread_seconds{file="epoch-000001/0000000001-0000000001.r0.parquet"}'

# Of an erasure that does not end, and of what cannot be read.
TROUBLES = (
    *("erasure_waits", "store_files_not_rewritten", "command_damaged", "ledger_damaged", "archive_waits"),
)
STARTED = 'foldin_service_start_timestamp_seconds{instance="a"}'

# What a stack says that is well: first value, and what comes to it with each step.
WELL: dict[str, tuple[float, float]] = {
    'up{job="foldin",instance="a"}': (1, 0),
    'up{job="foldin",instance="b"}': (1, 0),
    'up{job="foldin-trainer",instance="t"}': (1, 0),
    'foldin_worker_silent_seconds{instance="a",worker="0"}': (1, 0),
    'foldin_supervisor_silent_seconds{instance="a"}': (1, 0),
    'foldin_worker_starts_total{instance="a"}': (2, 0),
    'foldin_workers{instance="a"}': (2, 0),
    # Of one that is starting: its second worker is heard of after the first.
    'foldin_worker_starts_total{instance="c"}': (1, 0.01),
    'foldin_workers{instance="c"}': (1, 0.01),
    STARTED: (-9_000, 0),
    "foldin_trainer_start_timestamp_seconds": (-9_000, 0),
    "foldin_trainer_store_run": (7, 0),
    "foldin_trainer_store_uncovered_slots": (0, 0),
    'foldin_trainer_store_replicas{server="a"}': (1, 0),
    'foldin_trainer_store_replicas{server="b"}': (1, 0),
    'foldin_store_up{instance="a"}': (1, 0),
    'foldin_store_up{instance="b"}': (1, 0),
    'foldin_store_reconnects_total{instance="a"}': (3, 0),
    'foldin_stored_damaged_total{instance="a"}': (2, 0),
    **{LOOKUPS % le: (0, 100) for le in ("0.01", "0.05", "+Inf")},
    **{PREDICTS % le: (0, 100) for le in ("0.01", "0.1", "+Inf")},
    LAG: (100, 0),
    'foldin_refusing{instance="a",reason="store_disk"}': (0, 0),
    ANSWERS % "200": (0, 100),
    ANSWERS % "401": (0, 1),
    ANSWERS % "503": (0, 0),
    'foldin_exceptions_total{instance="a"}': (1, 0),
    'foldin_generation{instance="a"}': (7, 0),
    'foldin_generation{instance="b"}': (7, 0),
    'foldin_rating_squared_error_sum{instance="a"}': (0, 8),
    'foldin_rating_squared_error_count{instance="a"}': (0, 10),
    "foldin_trainer_leading": (1, 0),
    "foldin_trainer_behind_seconds": (0, 0),
    ARRIVING % "live": (0.9, 0),
    ARRIVING % "previous": (0.9, 0),
    "foldin_trainer_arriving_ratings": (5_000, 0),
    EVENT % "fit_published": (0, STEP_S),
    EVENT % "archive_rebuild": (-3_600, 0),
    EVENT % "records_process_ended": (-7_200, 0),
    **{EVENT % name: (-7_200, 0) for name in TROUBLES},
    UNREAD: (0, 0),
    "foldin_trainer_fit_failures": (0, 0),
    "foldin_trainer_fit_running_seconds": (2, 0),
    "foldin_trainer_fit_seconds": (4, 0),
    "foldin_trainer_unfitted_seconds": (60, 0),
    "foldin_trainer_command_open_seconds": (1, 0),
    "foldin_trainer_clock_ahead_seconds": (-0.1, 0),
    'foldin_backup_timestamp_seconds{instance="a"}': (-86_400, 0),
}


@dataclass(frozen=True)
class Fault:
    """What changes of `WELL` once something is wrong: value and step from then on, None for a series that is
    no more. `alert` fires `within_s` after that, and `also` others that are about the same.
    """

    alert: str
    series: dict[str, tuple[float, float] | None]
    within_s: int = WITHIN_S
    also: tuple[str, ...] = ()


OF_TRAINER = {name: None for name in WELL if name.startswith("foldin_trainer_")}
OF_A = {name: None for name in WELL if 'instance="a"' in name}
FAULTS = [
    Fault("FoldinSlotsUncovered", {"foldin_trainer_store_uncovered_slots": (5461, 0)}),
    Fault("FoldinPrimaryWithoutReplica", {'foldin_trainer_store_replicas{server="b"}': (0, 0)}),
    # All of them at once.
    Fault(
        "FoldinPrimaryWithoutReplica",
        {f'foldin_trainer_store_replicas{{server="{of}"}}': (0, 0) for of in "ab"},
    ),
    Fault(
        "FoldinNoReplica",
        {'up{job="foldin",instance="a"}': (0, 0), 'up{job="foldin",instance="b"}': (0, 0)},
        also=("FoldinReplicaSilent",),
    ),
    Fault("FoldinReplicaSilent", {**OF_A, 'up{job="foldin",instance="a"}': (0, 0)}),
    Fault("FoldinWorkerSilent", {'foldin_worker_silent_seconds{instance="a",worker="0"}': (0, STEP_S)}),
    Fault("FoldinSupervisorSilent", {'foldin_supervisor_silent_seconds{instance="a"}': (0, STEP_S)}),
    Fault("FoldinWorkerRestarted", {'foldin_worker_starts_total{instance="a"}': (3, 0)}),
    Fault("FoldinRestarted", {STARTED: (WELL_S, 0)}),
    Fault("FoldinRestarted", {"foldin_trainer_start_timestamp_seconds": (WELL_S, 0)}),
    Fault("FoldinStoreRestarted", {"foldin_trainer_store_run": (6, 0)}),
    Fault("FoldinStoreDown", {'foldin_store_up{instance="b"}': (0, 0)}),
    # Cut every five seconds.
    Fault("FoldinStoreUnsteady", {'foldin_store_reconnects_total{instance="a"}': (4, 1)}),
    Fault("FoldinStoredDamaged", {'foldin_stored_damaged_total{instance="a"}': (3, 0)}),
    # A connection that is delayed by 30 ms.
    Fault("FoldinStoreSlow", {LOOKUPS % "0.01": (0, 0)}),
    Fault("FoldinStreamFilling", {LAG: (60_000, 0)}, within_s=90),
    Fault("FoldinRefusing", {'foldin_refusing{instance="a",reason="store_disk"}': (1, 0)}),
    Fault("FoldinTurnedAway", {ANSWERS % "401": (0, 20)}),
    Fault(
        "FoldinTrainerDown",
        {'up{job="foldin-trainer",instance="t"}': (0, 0), **OF_TRAINER},
        also=("FoldinNoLeader",),
    ),
    Fault("FoldinNoLeader", {"foldin_trainer_leading": (0, 0)}),
    Fault("FoldinArchiveBehind", {"foldin_trainer_behind_seconds": (0, STEP_S)}),
    Fault("FoldinTrainerTrouble", {EVENT % "archive_rebuild": (WELL_S, 0)}),
    *(Fault("FoldinTrainerTrouble", {EVENT % name: (WELL_S, 0)}) for name in TROUBLES),
    Fault("FoldinFileUnread", {UNREAD: (0.1, STEP_S)}),
    Fault("FoldinFitFails", {"foldin_trainer_fit_failures": (1, 0)}),
    Fault("FoldinFitHangs", {"foldin_trainer_fit_running_seconds": (0, STEP_S)}),
    # Of a leader that has published none yet.
    Fault(
        "FoldinFitHangs",
        {"foldin_trainer_fit_running_seconds": (0, STEP_S), "foldin_trainer_fit_seconds": None},
    ),
    Fault("FoldinRecordsProcess", {EVENT % "records_process_ended": (WELL_S, 0)}),
    Fault("FoldinFitLate", {"foldin_trainer_unfitted_seconds": (60, STEP_S)}, within_s=1_800),
    Fault("FoldinCommandStuck", {"foldin_trainer_command_open_seconds": (0, STEP_S)}, within_s=620),
    Fault(
        "FoldinBackupOld", {'foldin_backup_timestamp_seconds{instance="a"}': (-8 * DAY_S, 0)}, within_s=660
    ),
    Fault("FoldinClock", {"foldin_trainer_clock_ahead_seconds": (-11, 0)}),
    Fault("FoldinErrors", {ANSWERS % "503": (0, 20)}, within_s=180),
    Fault("FoldinMistakes", {'foldin_exceptions_total{instance="a"}': (2, 0)}),
    Fault("FoldinSlow", {PREDICTS % "0.01": (0, 0)}, within_s=420),
    Fault("FoldinReplicasDisagree", {'foldin_generation{instance="a"}': (8, 0)}, within_s=90),
    Fault("FoldinLiveWorse", {ARRIVING % "live": (0.93, 0)}, within_s=330),
]


def promtool(*arguments: str) -> str:
    """What it says. It has nothing against anything."""
    program = shutil.which("promtool") or missing("promtool, which comes with prometheus")
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_promtool_takes_the_rules_and_what_the_boards_ask(tmp_path: Path) -> None:
    asked = [
        {"record": f"board:{path.stem}:{number}:{target['refId']}", "expr": target["expr"]}
        for path in sorted((ROOT / "deploy/grafana/dashboards").glob("*.json"))
        for number, panel in enumerate(json.loads(path.read_text("utf-8"))["panels"])
        for target in panel["targets"]
    ]
    boards = tmp_path / "boards.yml"
    boards.write_text(yaml.safe_dump({"groups": [{"name": "boards", "rules": asked}]}))
    promtool("check", "rules", "--lint-fatal", str(ALERTS))
    assert f"{len(asked)} rules found" in promtool("check", "rules", "--lint-fatal", str(boards))
    # Of the container's, where rules and key lie.
    config = (ALERTS.parent / "prometheus.yml").read_text("utf-8")
    here = config.replace("/etc/prometheus", str(ALERTS.parent))
    (tmp_path / "key").touch()
    (tmp_path / "prometheus.yml").write_text(re.sub(r"/run/scrape-key/\S+", f"{tmp_path}/key", here))
    promtool("check", "config", str(tmp_path / "prometheus.yml"))


def recorded(start: float, step: float, count: int) -> str:
    return f"{start:g}{'+' if step >= 0 else '-'}{abs(step):g}x{count - 1}"


def series(
    fault: Fault, well_s: int, until_s: int, step_s: int = STEP_S, well: dict[str, tuple[float, float]] = WELL
) -> list[dict[str, str]]:
    """`WELL` for `well_s`, then what the fault makes of it. A counter goes on from where it was."""
    before, after = well_s // step_s, (until_s - well_s) // step_s + 1
    found = []
    for name, (start, step) in well.items():
        values = recorded(start, step, before)
        changed = fault.series.get(name, (start, step))
        if changed is None:
            # Prometheus marks what is not scraped any more.
            values += " stale"
        elif changed == (start, step) or (step and re.search("_(total|bucket|sum){", name)):
            values += " " + recorded(start + step * before, changed[1], after)
        else:
            values += " " + recorded(*changed, after)
        found.append({"series": name, "values": values})
    return found


def check(folder: Path, tests: Sequence[Mapping[str, object]], every_s: int) -> None:
    content = {"rule_files": [str(ALERTS)], "evaluation_interval": f"{every_s}s", "tests": list(tests)}
    (folder / "rules.yml").write_text(yaml.safe_dump(content))
    promtool("test", "rules", str(folder / "rules.yml"))


def firing(at_s: int, *alerts: str) -> dict[str, object]:
    return {
        "expr": 'group by (alertname) (ALERTS{alertstate="firing"})',
        "eval_time": f"{at_s}s",
        "exp_samples": [{"labels": f'{{alertname="{alert}"}}', "value": 1} for alert in sorted(alerts)],
    }


# promtool looks at hours of all rules: 20 s of a core.
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_each_fault_raises_its_alert_in_time_and_no_other(tmp_path: Path) -> None:
    tests = []
    for fault in FAULTS:
        end = WELL_S + fault.within_s
        checks = [firing(WELL_S - STEP_S), firing(end, fault.alert, *fault.also)]
        given = {"input_series": series(fault, WELL_S, end), "promql_expr_test": checks}
        tests.append({"name": fault.alert, "interval": f"{STEP_S}s", **given})
    check(tmp_path, tests, STEP_S)


@pytest.mark.slow
def test_a_day_on_which_ratings_are_predicted_worse_than_on_the_one_before(tmp_path: Path) -> None:
    """FoldinWorse compares an hour with the same one of yesterday, and waits half an hour."""
    fault = Fault("FoldinWorse", {'foldin_rating_squared_error_sum{instance="a"}': (0, 12)})
    well_s, step_s = DAY_S + 7_200, 60
    only = {name: WELL[name] for name in WELL if re.search(r"squared_error|up\{|leading", name)}
    end = well_s + 5_400
    checks = [firing(well_s), firing(well_s + 1_200), firing(end, "FoldinWorse")]
    given = series(fault, well_s, end, step_s, only)
    # Every five seconds of a day would be 20,000 looks at each rule.
    check(tmp_path, [{"interval": "60s", "input_series": given, "promql_expr_test": checks}], step_s)


def test_every_alert_is_raised_here() -> None:
    raised = {fault.alert for fault in FAULTS} | {"FoldinWorse"}
    assert raised == set(re.findall(r"alert: (\w+)", ALERTS.read_text("utf-8")))


# What a trainer tells the page of itself; other alerts of its metrics the page knows by other signs.
TOLD = {
    *("FoldinArchiveBehind", "FoldinTrainerTrouble", "FoldinFileUnread", "FoldinFitHangs", "FoldinClock"),
    *("FoldinRecordsProcess", "FoldinFitLate", "FoldinCommandStuck", "FoldinLiveWorse"),
}


def figures_after(fault: Fault) -> signs.Figures:
    """The trainer's metrics `within_s` after the fault began, which is at `WELL_S`."""
    found = {}
    for series_name, (start, step) in WELL.items():
        if not series_name.startswith(signs.PREFIX):
            continue
        name, _, label = series_name.removeprefix(signs.PREFIX).partition("{")
        changed = fault.series.get(series_name, (start + step * WELL_S / STEP_S, step))
        if changed is not None:
            found[name, label[:-2].partition('"')[2]] = changed[0] + changed[1] * fault.within_s / STEP_S
    return found


def test_a_trainer_tells_the_same_of_itself() -> None:
    (troubles,) = re.findall(r'event=~"([\w|]+)"', ALERTS.read_text("utf-8"))
    assert set(troubles.split("|")) == signs.TROUBLES
    # How long fits took before this trainer began Prometheus alone remembers.
    faults = [each for each in FAULTS if each.alert in TOLD and None not in each.series.values()]
    assert {each.alert for each in faults} == TOLD
    for fault in (Fault("", {}), *faults):
        told = signs.signs_of(figures_after(fault), WELL_S + fault.within_s)
        assert told.keys() == {fault.alert} - {""}, fault
