"""The files that containers run on agree with the code and with each other. Needs no engine."""

import json
import os
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from foldin.store import CONFIG
from service.experiments.exposition import OF_ARM, OF_GENERATION
from service.metrics import Counts, error_bounds, expose

ROOT = Path(__file__).resolve().parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf-8"))


NODES = {name for name in COMPOSE["services"] if re.fullmatch(r"redis-\d", name)}


def exposed() -> set[str]:
    """The names that scrapes of service and trainer have."""
    counts = Counts(0, 0.0, error_bounds(1, 5))
    counts.request("/predict", 200, 0.001)
    text = expose([counts], {0: 0}, store_up=True).decode()
    of_service = set(re.findall(r"^(foldin_\w+)", text, re.MULTILINE))
    # What a trainer says depends on its state; tests/fault/test_alerts.py has one that says all of it.
    source = (ROOT / "trainer/health/metrics.py").read_text("utf-8")
    gauges = {f"foldin_trainer_{name}" for name in re.findall(r'_gauge\(\s*"(\w+)"', source)}
    stored = {name for name, _ in (*OF_GENERATION.values(), *OF_ARM.values())}
    # Counters get a suffix when they are written out.
    counters = set(re.findall(r'CounterMetricFamily\(\s*"(foldin_trainer_\w+)"', source))
    others = set(re.findall(r'"(foldin_trainer_\w+)"', source)) - counters
    return of_service | stored | gauges | others | {f"{name}_total" for name in counters}


BOARDS = sorted((ROOT / "deploy/grafana/dashboards").glob("*.json"))


@pytest.mark.parametrize("path", [ROOT / "deploy/prometheus/alerts.yml", *BOARDS], ids=lambda path: path.name)
def test_every_metric_that_is_watched_is_exposed(path: Path) -> None:
    text = path.read_text("utf-8")
    watched = set(re.findall(r"\bfoldin_\w+", text))
    assert watched
    assert watched <= exposed()


def test_every_alert_leads_to_its_runbook() -> None:
    rules = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yml").read_text("utf-8"))
    alerts = {rule["alert"]: rule["annotations"] for group in rules["groups"] for rule in group["rules"]}
    runbooks = (ROOT / "docs/alerts.md").read_text("utf-8")
    for name, told in alerts.items():
        # The anchor of a heading is its text in lower case.
        assert told["runbook_url"].endswith(f"/alerts.html#{name.lower()}")
        runbook = runbooks.partition(f"\n## {name}\n")[2].partition("\n#")[0]
        assert re.search(r"^Means: .+\.$", runbook, re.M), name
        assert re.search(r"^Do: .+\.$", runbook, re.M), name
    # None of an alert that has gone.
    assert set(re.findall(r"^## (.+)$", runbooks, re.M)) == set(alerts)
    # What all say alike: where that is, is said once, to Prometheus.
    assert len({told["runbook_url"].partition("/alerts.html")[0] for told in alerts.values()}) == 1
    prometheus = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text("utf-8"))
    (variable,) = re.findall(r"^\$\{(\w+)\}$", prometheus["global"]["external_labels"]["manual"])
    service = COMPOSE["services"]["prometheus"]
    port = COMPOSE["services"]["nginx"]["ports"][0].partition(":-")[2].partition("}")[0]
    assert service["environment"][variable] == f"${{{variable}:-http://localhost:{port}/manual}}"


def test_the_image_has_the_labels_of_the_open_container_initiative() -> None:
    text = (ROOT / "Dockerfile").read_text("utf-8")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    labels = dict(re.findall(r'org\.opencontainers\.image\.(\w+)="([^"]*)"', text))
    assert (labels["title"], labels["licenses"]) == (project["name"], project["license"])
    # What differs from build to build is said by the builder; a version is that of the project.
    for name in ("url", "source", "version", "revision"):
        assert labels[name] == f"${name.upper()}"
        assert re.search(rf"^ARG {name.upper()}=", text, re.M), name
    assert f"\nARG VERSION={project['version']}\n" in text


@pytest.mark.parametrize(
    "path",
    [
        "Dockerfile",
        "pyproject.toml",
        "docker-compose.yml",
        "deploy/prometheus",
        "clients/python",
        "clients/javascript",
    ],
)
def test_nothing_that_is_published_leads_to_an_address_that_is_not_there(path: str) -> None:
    """Foldin has no home on the web yet: what names one would send people to a stranger."""
    listed = subprocess.run(["git", "ls-files", path], cwd=ROOT, capture_output=True, text=True, check=True)
    assert listed.stdout
    for name in (each for each in listed.stdout.split() if "/test/" not in each):
        text = (ROOT / name).read_text("utf-8")
        assert not re.search(r"foldin\.(?:readthedocs|example|dev|org|com|io/)|example\.(?:com|org)", text), (
            name
        )


def test_lines_of_the_log_that_raise_an_alert_are_lines_of_the_trainer() -> None:
    text = (ROOT / "deploy/prometheus/alerts.yml").read_text("utf-8")
    (names,) = re.findall(r'event=~"([\w|]+)"', text)
    sources = "".join(path.read_text("utf-8") for path in (ROOT / "trainer").rglob("*.py"))
    logged = set(re.findall(r'log\.(?:event|warning|unexpected)\(\s*"(\w+)"', sources))
    assert set(names.split("|")) <= logged


def test_there_is_a_board_for_each_role() -> None:
    assert {path.stem for path in BOARDS} == {"foldin", "service", "store", "trainer"}
    boards = [json.loads(path.read_text("utf-8")) for path in BOARDS]
    for of in ("uid", "title"):
        assert len({board[of] for board in boards}) == len(boards)


@pytest.mark.parametrize("path", BOARDS, ids=lambda path: path.stem)
def test_a_board_has_no_two_panels_in_one_place(path: Path) -> None:
    board = json.loads(path.read_text("utf-8"))
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & taken, panel["title"]
        taken |= cells


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_every_container_has_no_rights_and_is_bounded(name: str) -> None:
    container = COMPOSE["services"][name]
    assert container["read_only"] is True
    assert container["cap_drop"] == ["ALL"]
    assert name in {"secrets", "cluster-secrets"} or "cap_add" not in container
    assert "no-new-privileges:true" in container["security_opt"]
    assert container["mem_limit"]
    assert container["pids_limit"] > 0
    assert container.get("network_mode") == "none" or container["networks"]


def test_every_image_of_others_names_a_line_of_releases() -> None:
    """Not whatever is newest: `redis:8` and `nginx:stable` bring mendings, and no other Redis than 8."""
    files = [ROOT / "docker-compose.yml", *sorted((ROOT / "deploy/kubernetes").glob("*.yaml"))]
    named = [
        (file.name, re.sub(r"\$\{\w+:-(.*)\}", r"\1", image))
        for file in files
        for image in re.findall(r"^\s*(?:- )?image: (\S+)", file.read_text("utf-8"), re.M)
    ]
    dockerfile = (ROOT / "Dockerfile").read_text("utf-8")
    (python,) = re.findall(r"^ARG PYTHON_IMAGE=(\S+)$", dockerfile, re.M)
    assert f"${{FOLDIN_PYTHON_IMAGE:-{python}}}" in (ROOT / "docker-compose.yml").read_text("utf-8")
    dockerfile = dockerfile.replace("${PYTHON_IMAGE}", python)
    stages = set(re.findall(r" AS (\w+)$", dockerfile, re.M))
    named += [("Dockerfile", each) for each in re.findall(r"^FROM (\S+)", dockerfile, re.M)]
    # Ours is built here, or named by who applies the files.
    ours = {"foldin", "$FOLDIN_IMAGE", *stages}
    assert {"foldin", "$FOLDIN_IMAGE"} <= {image for _, image in named}
    others = [(file, image) for file, image in named if image not in ours]
    assert {file for file, _ in others} == {"docker-compose.yml", "nginx.yaml", "store.yaml", "Dockerfile"}
    for file, image in others:
        assert re.fullmatch(r"[\w./-]+:(v?\d[\w.-]*|stable)", image), (file, image)


def test_the_store_is_on_a_network_of_its_own() -> None:
    assert COMPOSE["networks"]["store"]["internal"] is True
    on_it = {name for name, each in COMPOSE["services"].items() if "store" in each.get("networks", ())}
    assert on_it == {"redis", "keys", "player-key", "service", "trainer", "cluster", *NODES}
    assert {name for name, each in COMPOSE["services"].items() if "ports" in each}.isdisjoint(on_it)


def test_what_asks_for_no_key_is_for_this_machine_alone() -> None:
    # The service asks for keys behind nginx; the environment has games alone.
    open_to_all = {"nginx", "nginx-tls", "environment"}
    published = {name: each["ports"] for name, each in COMPOSE["services"].items() if "ports" in each}
    assert published.keys() > open_to_all
    for name in published.keys() - open_to_all:
        for port in published[name]:
            assert re.match(r"\$\{\w+:-127\.0\.0\.1:\d+\}:\d+$", port), (name, port)


def test_grafana_has_no_user_who_can_log_in() -> None:
    told = COMPOSE["services"]["grafana"]["environment"]
    # Its first start makes an administrator with a password that is known.
    assert told["GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"] == "true"
    # One that an earlier start has made.
    assert (told["GF_AUTH_DISABLE_LOGIN_FORM"], told["GF_AUTH_BASIC_ENABLED"]) == ("true", "false")
    assert told["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"


def test_secrets_are_in_files_that_few_mount() -> None:
    mounted: dict[str, set[str]] = {}
    for name, each in COMPOSE["services"].items():
        for volume in each.get("volumes", ()):
            mounted.setdefault(volume.partition(":")[0], set()).add(name)
    assert mounted["redis-acl"] == {"secrets", "redis"}
    users = {"keys", "player-key", "service", "trainer"}
    assert mounted["redis-password"] == {"secrets", "cluster-secrets", *users}
    assert mounted["cluster-acl"] == {"cluster-secrets", *NODES}
    assert mounted["cluster-password"] == {"cluster-secrets", "cluster"}
    # What may operate is held by the operator alone; without a player there is no other such key.
    assert mounted["keys"] == {"keys"}
    assert mounted["player-key"] == {"player-key", "player"}
    assert COMPOSE["services"]["player-key"]["profiles"] == ["play"]
    assert mounted["scrape-key"] == {"keys", "prometheus"}


def test_fits_beside_an_object_store_are_on_the_volume_of_the_archive() -> None:
    """All else is read-only. With an archive in a folder it is not used."""
    image = (ROOT / "Dockerfile").read_text("utf-8")
    trainer = COMPOSE["services"]["trainer"]
    (fits,) = re.findall(r"FOLDIN_FITS_DIR=(\S+)", image)
    assert trainer["environment"]["FOLDIN_FITS_DIR"] == fits
    (archive,) = re.findall(r"FOLDIN_ARCHIVE_DIR=(\S+)", image)
    assert f"archive:{archive}" in trainer["volumes"]
    assert Path(fits).parent == Path(archive)


def test_the_service_can_be_scaled() -> None:
    service = COMPOSE["services"]["service"]
    assert not {"container_name", "ports"} & service.keys()


def test_a_cluster_is_of_servers_like_the_one_and_there_only_where_it_is_asked_for() -> None:
    services = COMPOSE["services"]
    of_cluster = {name for name, each in services.items() if each.get("profiles") == ["cluster"]}
    assert of_cluster == {"cluster", "cluster-secrets", *NODES}
    for name in NODES:
        for what in ("command", "mem_limit", "user", "networks", "healthcheck", "image"):
            assert services[name][what] == services["redis"][what], (name, what)
        assert services[name]["environment"]["REDIS_PEERS"].split() == sorted(NODES)
        assert f"{name}:/data" in services[name]["volumes"]
    # It says itself who does not answer: one that is down keeps nothing else from a start.
    assert services["cluster"]["depends_on"] == {name: {"condition": "service_started"} for name in NODES}
    for name in ("keys", "service", "trainer"):
        assert services[name]["depends_on"]["cluster"]["required"] is False
    # What makes the others use it: their variables, and none that is not.
    lines = (ROOT / "deploy/redis/cluster.env").read_text("utf-8").splitlines()
    told = dict(line.split("=", 1) for line in lines if not line.startswith("#"))
    assert told.pop("COMPOSE_PROFILES") == "cluster"
    assert {f"${{{name}:-" for name in told} <= set(
        re.findall(r"\$\{\w+:-", (ROOT / "docker-compose.yml").read_text("utf-8"))
    )
    for url in (told["FOLDIN_REDIS_URL"], services["cluster"]["environment"]["FOLDIN_REDIS_URL"]):
        assert set(url.partition("@")[2].split(",")) == NODES


def test_the_profile_of_a_cluster_without_its_settings_starts_nothing(tmp_path: Path) -> None:
    """All would be stored in the one server."""
    container = COMPOSE["services"]["cluster-secrets"]
    assert container["environment"]["FOLDIN_REDIS_URL"] == "${FOLDIN_REDIS_URL:-}"
    assert container["command"][4:] == ["/cluster"]
    for url in ("", "redis://foldin@redis:6379"):
        command = ["/bin/sh", str(ROOT / "deploy/redis/secrets.sh"), *[str(tmp_path)] * 3, "1", "/cluster"]
        environment = {"PATH": os.environ["PATH"], "FOLDIN_REDIS_URL": url}
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=30, check=False
        )
        assert done.returncode == 2
        assert re.fullmatch(r".*deploy/redis/cluster\.env into \.env.*\n", done.stderr)
    assert not list(tmp_path.iterdir())


def test_the_store_neither_forgets_nor_evicts() -> None:
    command = " ".join(COMPOSE["services"]["redis"]["command"])
    assert "--appendonly yes" in command
    assert "--appendfsync always" in command
    assert "--maxmemory-policy noeviction" in command


def test_the_store_keeps_no_call_that_took_long() -> None:
    """Its keys have user ids, which would stay in memory when all else of a user is erased."""
    kubernetes = (ROOT / "deploy/kubernetes/store.yaml").read_text("utf-8")
    (store,) = (each for each in yaml.safe_load_all(kubernetes) if each["kind"] == "StatefulSet")
    (container,) = store["spec"]["template"]["spec"]["containers"]
    for told in (COMPOSE["services"]["redis"]["command"], container.get("args") or container["command"]):
        assert "--slowlog-log-slower-than -1" in " ".join(told)
    assert "\nslowlog-log-slower-than -1\n" in CONFIG


def test_what_a_killed_rewrite_of_the_store_left_is_removed(tmp_path: Path) -> None:
    """It has who was forgotten since."""
    assert COMPOSE["services"]["redis"]["entrypoint"] == ["/bin/sh", "/etc/foldin/start.sh"]
    script = (ROOT / "deploy/redis/start.sh").read_text("utf-8").replace("/data/", f"{tmp_path}/data/")
    data, program = tmp_path / "data", tmp_path / "redis-server"
    data.mkdir()
    for name in ("temp-rewriteaof-7.aof", "temp-rewriteaof-bg-7.aof", "dump.rdb"):
        (data / name).touch()
    program.write_text('#!/bin/sh\necho redis-server "$@"\n')
    program.chmod(0o700)
    run = ["/bin/sh", "-c", script, "start.sh", "redis-server", "--dir", "/data"]
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(run, env=environment, capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout == "redis-server --dir /data\n"
    assert [path.name for path in data.iterdir()] == ["dump.rdb"]


def test_compose_sets_only_what_is_a_setting() -> None:
    known = (ROOT / "docs/settings.md").read_text("utf-8")
    for name in ("service", "trainer"):
        for setting in COMPOSE["services"][name]["environment"]:
            assert f"`{setting}`" in known, setting


def test_every_variable_of_the_compose_file_is_documented() -> None:
    text = (ROOT / "docker-compose.yml").read_text("utf-8")
    documents = "".join(
        (ROOT / "docs" / name).read_text("utf-8") for name in ("operations.md", "settings.md")
    )
    variables = set(re.findall(r"\$\{(\w+)", text))
    assert variables
    assert {variable for variable in variables if f"`{variable}`" not in documents} == set()


def test_the_image_gets_every_package_and_nothing_that_is_not_built_from() -> None:
    wheel = re.search(r"packages = \[([^\]]*)\]", (ROOT / "pyproject.toml").read_text("utf-8"))
    assert wheel is not None
    packages = re.findall(r'"([\w/]+)"', wheel[1])
    dockerfile = (ROOT / "Dockerfile").read_text("utf-8")
    sent = (ROOT / ".dockerignore").read_text("utf-8").split()
    for package in packages:
        assert f"COPY {package} {package}" in dockerfile
        assert f"!{package}" in sent
    assert "COPY .ci/wheel.py .ci/wheel.py" in dockerfile
    assert "!.ci/wheel.py" in sent
