"""The files that containers run on agree with the code and with each other. Needs no engine."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

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
    # What a trainer says depends on its state.
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
