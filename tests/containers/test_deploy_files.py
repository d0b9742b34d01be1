"""The files that containers run on promise the same of every container. Needs no engine."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.servers import missing

ROOT = Path(__file__).resolve().parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf-8"))


NODES = {name for name in COMPOSE["services"] if re.fullmatch(r"redis-\d", name)}


def test_every_container_has_no_rights_and_is_bounded() -> None:
    for name, container in COMPOSE["services"].items():
        assert container["read_only"] is True, name
        assert container["cap_drop"] == ["ALL"], name
        assert name in {"secrets", "cluster-secrets"} or "cap_add" not in container, name
        assert "no-new-privileges:true" in container["security_opt"], name
        assert container["mem_limit"], name
        assert container["pids_limit"] > 0, name
        assert container.get("network_mode") == "none" or container["networks"], name


def test_the_store_is_on_a_network_of_its_own_and_what_asks_for_no_key_is_for_this_machine_alone() -> None:
    assert COMPOSE["networks"]["store"]["internal"] is True
    on_it = {name for name, each in COMPOSE["services"].items() if "store" in each.get("networks", ())}
    assert on_it == {"redis", "keys", "player-key", "service", "trainer", "cluster", *NODES}
    assert {name for name, each in COMPOSE["services"].items() if "ports" in each}.isdisjoint(on_it)
    # The service asks for keys behind nginx.
    open_to_all = {"nginx", "nginx-tls"}
    published = {name: each["ports"] for name, each in COMPOSE["services"].items() if "ports" in each}
    assert published.keys() > open_to_all
    for name in published.keys() - open_to_all:
        for port in published[name]:
            assert re.match(r"\$\{\w+:-127\.0\.0\.1:\d+\}:\d+$", port), (name, port)
    names = ("AUTH_DISABLE_LOGIN_FORM", "SECURITY_DISABLE_INITIAL_ADMIN_CREATION")
    assert {COMPOSE["services"]["grafana"]["environment"][f"GF_{name}"] for name in names} == {"true"}


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


def test_the_image_gets_every_package_and_nothing_that_is_not_built_from() -> None:
    wheel = re.search(r"packages = \[([^\]]*)\]", (ROOT / "pyproject.toml").read_text("utf-8"))
    assert wheel is not None
    dockerfile = (ROOT / "Dockerfile").read_text("utf-8")
    sent = (ROOT / ".dockerignore").read_text("utf-8").split()
    for name in (*re.findall(r'"([\w/]+)"', wheel[1]), ".ci/wheel.py"):
        assert f"COPY {name} {name}" in dockerfile
        assert f"!{name}" in sent


def test_boards_and_alerts_ask_for_metrics_that_there_are() -> None:
    modules = [path for room in ("service", "trainer") for path in (ROOT / room).rglob("*.py")]
    code = "".join(path.read_text("utf-8") for path in modules)
    # A name with what it is behind it.
    declared = set(re.findall(r'"(foldin_\w+)",\s*f?"', code))
    constants = dict(re.findall(r'^(\w+) = "(foldin_\w+)"', code, re.MULTILINE))
    declared |= {constants[name] for name in re.findall(r"MetricFamily\((\w+),", code) if name in constants}
    declared |= {f"foldin_trainer_{name}" for name in re.findall(r'\b_gauges?\(\s*"(\w+)"', code)}
    files = [ROOT / "deploy/prometheus/alerts.yml", *(ROOT / "deploy/grafana/dashboards").glob("*.json")]
    asked = {path.name: set(re.findall(r"\bfoldin_\w+", path.read_text("utf-8"))) for path in files}
    assert all(asked.values())
    ends = re.compile("_(total|bucket|sum|count)$")
    assert {name for names in asked.values() for name in names if ends.sub("", name) not in declared} == set()


FOLDER = ROOT / "deploy/kubernetes"
CLUSTER, DROPPED = "cluster/", {"drop": ["ALL"]}
PARTS = ("backup", "keys", "nginx", "service", "store", "trainer")
PODS = (*(f"{CLUSTER}foldin-{part}" for part in ("cluster", "store")), *(f"foldin-{part}" for part in PARTS))
# Of nginx's script, not of a process of Foldin.
OTHERS = {"FOLDIN_SERVICE", "FOLDIN_NGINX_PROXIES", "NUMBA_CACHE_DIR", "REDIS_PEERS"}


@cache
def documents() -> list[dict[str, Any]]:
    files = {each: list(yaml.safe_load_all(each.read_text("utf-8"))) for each in FOLDER.rglob("*.yaml")}
    for document in files[FOLDER / CLUSTER / "store.yaml"]:
        document["metadata"]["name"] = CLUSTER + document["metadata"]["name"]
    return [document for file in sorted(files) for document in files[file]]


def of_kind(kind: str) -> dict[str, dict[str, Any]]:
    return {each["metadata"]["name"]: each for each in documents() if each["kind"] == kind}


def workloads() -> dict[str, dict[str, Any]]:
    kinds = ("Deployment", "StatefulSet", "Job")
    found = {name: each for kind in kinds for name, each in of_kind(kind).items()}
    # Of what makes jobs, the job.
    return found | {name: each["spec"]["jobTemplate"] for name, each in of_kind("CronJob").items()}


def pod(name: str) -> dict[str, Any]:
    return dict(workloads()[name]["spec"]["template"]["spec"])


def component(name: str) -> str:
    return str(workloads()[name]["spec"]["template"]["metadata"]["labels"]["app.kubernetes.io/component"])


def containers(name: str) -> Iterator[dict[str, Any]]:
    yield from pod(name).get("initContainers", ())
    yield from pod(name)["containers"]


def test_all_is_in_one_namespace_of_the_strictest_standard() -> None:
    namespace = of_kind("Namespace")["foldin"]
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    others = [each for each in documents() if each["kind"] != "Namespace"]
    assert {each["metadata"]["namespace"] for each in others} == {"foldin"}
    assert tuple(sorted(workloads())) == PODS


def test_a_primary_of_a_cluster_has_two_replicas_and_each_server_the_memory_that_is_asked_for() -> None:
    former = COMPOSE["services"]["cluster"]
    assert len(NODES) == 3 * int(former["command"][-1])
    address = (ROOT / "deploy/redis/cluster.env").read_text("utf-8")
    for text in (address, former["environment"]["FOLDIN_REDIS_URL"]):
        assert set(re.findall(r"redis-\d", text)) == NODES
    store = workloads()["cluster/foldin-store"]["spec"]
    (job,) = pod("cluster/foldin-cluster")["containers"]
    assert store["replicas"] == 3 * int(job["args"][-1])
    assert set(re.findall(r"foldin-store-(\d)", str(job["env"]))) == {
        str(k) for k in range(store["replicas"])
    }
    assert all("${FOLDIN_REDIS_MEMORY" in str(COMPOSE["services"][name]["command"]) for name in NODES)


@pytest.mark.parametrize("store", ["store", "cluster"])
def test_kubernetes_gets_the_memory_of_a_store_that_is_asked_for(tmp_path: Path, store: str) -> None:
    kubectl, got = tmp_path / "kubectl", tmp_path / "got"
    # In the place of the real one: it keeps what it is told to apply.
    kubectl.write_text(f'#!/bin/sh\ncase "$*" in "apply -f -") cat >>{got}; echo --- >>{got};; esac\n')
    kubectl.chmod(0o700)
    asked = {"FOLDIN_IMAGE": "x", "FOLDIN_REDIS_MEMORY": "5gb", "FOLDIN_REDIS_LIMIT": "7Gi"}
    environment = {**asked, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    subprocess.run(["/bin/sh", FOLDER / "apply.sh", store], env=environment, check=True, capture_output=True)
    applied = [each for each in yaml.safe_load_all(got.read_text("utf-8")) if each]
    (server,) = [
        each for each in applied if each["kind"] == "StatefulSet" and "store" in str(each["metadata"])
    ]
    (container,) = server["spec"]["template"]["spec"]["containers"]
    arguments = container.get("args") or container["command"]
    assert arguments[arguments.index("--maxmemory") + 1] == "5gb"
    assert container["resources"]["limits"]["memory"] == "7Gi"


@pytest.mark.slow
def test_the_files_are_what_the_releases_of_kubernetes_take(tmp_path: Path) -> None:
    """By their schemas, strictly, as `make manifests` does."""
    python = Path(sys.prefix, "supply/bin/python")
    if not python.exists():
        missing(f"{python}, which `make manifests` makes")
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text((FOLDER / "store.yaml").read_text("utf-8").replace("containerPort:", "port:"), "utf-8")
    for files, code in (sorted(FOLDER.rglob("*.yaml")), 0), ([wrong], 1):
        command = [python, ROOT / ".ci/manifests.py", *files]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stdout + done.stderr


@pytest.mark.parametrize("name", PODS)
def test_every_pod_has_no_rights_is_bounded_and_has_settings_and_secrets_by_file(name: str) -> None:
    known = (ROOT / "docs/settings.md").read_text("utf-8")
    spec = pod(name)
    claims = workloads()[name]["spec"].get("volumeClaimTemplates", ())
    volumes = {each["name"] for each in spec["volumes"]} | {claim["metadata"]["name"] for claim in claims}
    assert spec["automountServiceAccountToken"] is False
    # Of a Service `foldin` every process would get a variable FOLDIN_PORT.
    assert spec["enableServiceLinks"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] > 0
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    bounded = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": DROPPED}
    for each in containers(name):
        assert each["securityContext"] == bounded
        assert each["resources"]["limits"]["memory"]
        assert each["resources"]["requests"].keys() == {"cpu", "memory"}
        for variable in each.get("env", ()):
            assert f"`{variable['name']}`" in known or variable["name"] in OTHERS, variable
            address = r"redis(://\w+@[\w-]+:6379|\+cluster://cluster@[\w.,-]+)"
            assert "@" not in variable["value"] or re.fullmatch(address, variable["value"])
        assert {mount["name"] for mount in each["volumeMounts"]} <= volumes
    assert all(each["emptyDir"]["sizeLimit"] for each in spec["volumes"] if "emptyDir" in each)


def test_who_may_speak_to_whom() -> None:
    policies = of_kind("NetworkPolicy")
    assert policies["closed"]["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    to_store = policies["store"]["spec"]["ingress"]
    (who,) = to_store[0]["from"][0]["podSelector"]["matchExpressions"]
    assert sorted(who["values"]) == ["backup", "keys", "service", "trainer"]
    assert "egress" not in policies["store"]["spec"]
    for name in ("service", "trainer", "keys", "backup"):
        (out,) = policies[name]["spec"]["egress"]
        assert out["to"] == [{"podSelector": {"matchLabels": {"app.kubernetes.io/component": "store"}}}]
    # Any other pod could name another client to nginx, which believes it.
    (to_nginx,) = policies["nginx"]["spec"]["ingress"]
    assert to_nginx["from"] == [{"namespaceSelector": {"matchLabels": {"foldin.io/ingress": "true"}}}]
    manual = (ROOT / "docs/operations.md").read_text("utf-8")
    assert re.search(r"kubectl label namespace \S+ foldin\.io/ingress=true", manual)
    rules = [rule for each in policies.values() for rule in each["spec"].get("ingress", [])]
    assert all(rule["from"] for rule in rules)
    # What is opened is what listens.
    for name in ("nginx", "service", "trainer", "store"):
        (listens,) = [each for each in PODS if component(each) == name and CLUSTER not in each]
        ports = {port["containerPort"] for each in pod(listens)["containers"] for port in each["ports"]}
        assert {port["port"] for rule in policies[name]["spec"]["ingress"] for port in rule["ports"]} == ports
