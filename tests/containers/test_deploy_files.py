"""The files that containers run on agree with the code and with each other. Needs no engine."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.metrics import Counts, error_bounds, expose

ROOT = Path(__file__).resolve().parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf-8"))


def exposed() -> set[str]:
    """The names that scrapes of service and trainer have."""
    counts = Counts(0, 0.0, error_bounds(1, 5))
    counts.request("/predict", 200, 0.001)
    text = expose([counts], {0: 0}, store_up=True).decode()
    of_service = set(re.findall(r"^(foldin_\w+)", text, re.MULTILINE))
    # What a trainer says depends on its state; tests/fault/test_alerts.py has one that says all of it.
    source = (ROOT / "trainer/health/metrics.py").read_text("utf-8")
    gauges = {f"foldin_trainer_{name}" for name in re.findall(r'_gauge\(\s*"(\w+)"', source)}
    return of_service | gauges | set(re.findall(r'"(foldin_trainer_\w+)"', source))


@pytest.mark.parametrize("name", ["prometheus/alerts.yml", "grafana/dashboards/foldin.json"])
def test_every_metric_that_is_watched_is_exposed(name: str) -> None:
    text = (ROOT / "deploy" / name).read_text("utf-8")
    watched = set(re.findall(r"\bfoldin_\w+", text))
    assert watched
    assert watched <= exposed()


def test_every_alert_is_explained() -> None:
    rules = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yml").read_text("utf-8"))
    names = [rule["alert"] for group in rules["groups"] for rule in group["rules"]]
    operations = (ROOT / "docs/operations.md").read_text("utf-8")
    assert [name for name in names if f"`{name}`" not in operations] == []


def test_lines_of_the_log_that_raise_an_alert_are_lines_of_the_trainer() -> None:
    text = (ROOT / "deploy/prometheus/alerts.yml").read_text("utf-8")
    (names,) = re.findall(r'event=~"([\w|]+)"', text)
    sources = "".join(path.read_text("utf-8") for path in (ROOT / "trainer").rglob("*.py"))
    logged = set(re.findall(r'log\.(?:event|warning|unexpected)\(\s*"(\w+)"', sources))
    assert set(names.split("|")) <= logged


def test_the_board_has_no_two_panels_in_one_place() -> None:
    board = json.loads((ROOT / "deploy/grafana/dashboards/foldin.json").read_text("utf-8"))
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
    assert name == "secrets" or "cap_add" not in container
    assert "no-new-privileges:true" in container["security_opt"]
    assert container["mem_limit"]
    assert container["pids_limit"] > 0
    assert container.get("network_mode") == "none" or container["networks"]


def test_no_image_is_whatever_is_newest() -> None:
    images = [each["image"] for each in COMPOSE["services"].values()]
    assert [image for image in images if image.endswith(":latest")] == []
    assert [image for image in images if ":" not in image] == []
    dockerfile = (ROOT / "Dockerfile").read_text("utf-8")
    assert all(":" in image for image in re.findall(r"^FROM (\S+/\S+|python\S*)", dockerfile, re.M))


def test_the_store_is_on_a_network_of_its_own() -> None:
    assert COMPOSE["networks"]["store"]["internal"] is True
    on_it = {name for name, each in COMPOSE["services"].items() if "store" in each.get("networks", ())}
    assert on_it == {"redis", "keys", "service", "trainer"}
    assert {name for name, each in COMPOSE["services"].items() if "ports" in each}.isdisjoint(on_it)


def test_secrets_are_in_files_that_few_mount() -> None:
    mounted: dict[str, set[str]] = {}
    for name, each in COMPOSE["services"].items():
        for volume in each.get("volumes", ()):
            mounted.setdefault(volume.partition(":")[0], set()).add(name)
    assert mounted["redis-acl"] == {"secrets", "redis"}
    assert mounted["redis-password"] == {"secrets", "keys", "service", "trainer"}
    assert mounted["keys"] == {"keys", "player"}
    assert mounted["scrape-key"] == {"keys", "prometheus"}


def test_the_service_can_be_scaled() -> None:
    service = COMPOSE["services"]["service"]
    assert not {"container_name", "ports"} & service.keys()


def test_the_store_neither_forgets_nor_evicts() -> None:
    command = " ".join(COMPOSE["services"]["redis"]["command"])
    assert "--appendonly yes" in command
    assert "--appendfsync always" in command
    assert "--maxmemory-policy noeviction" in command


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
    packages = re.findall(r'"(\w+)"', wheel[1])
    dockerfile = (ROOT / "Dockerfile").read_text("utf-8")
    sent = (ROOT / ".dockerignore").read_text("utf-8").split()
    for package in packages:
        assert f"COPY {package} {package}" in dockerfile
        assert f"!{package}" in sent
