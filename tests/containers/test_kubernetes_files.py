"""The files for Kubernetes: what they promise of every pod, and that they name only what there is.

`make manifests` holds them against the schemas of Kubernetes.
"""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "deploy/kubernetes"
PODS = ("foldin-backup", "foldin-keys", "foldin-nginx", "foldin-service", "foldin-store", "foldin-trainer")
# Of nginx's script, not of a process of Foldin.
OTHERS = {"FOLDIN_SERVICE", "FOLDIN_NGINX_PROXIES"}


@cache
def documents() -> list[dict[str, Any]]:
    """Every document of every file."""
    files = sorted(FOLDER.glob("*.yaml"))
    return [document for file in files for document in yaml.safe_load_all(file.read_text("utf-8"))]


def of_kind(kind: str) -> dict[str, dict[str, Any]]:
    """The documents of a kind by name."""
    return {each["metadata"]["name"]: each for each in documents() if each["kind"] == kind}


def workloads() -> dict[str, dict[str, Any]]:
    """What makes pods, by name."""
    found = {
        name: each for kind in ("Deployment", "StatefulSet", "Job") for name, each in of_kind(kind).items()
    }
    # Of what makes jobs, the job.
    return found | {name: each["spec"]["jobTemplate"] for name, each in of_kind("CronJob").items()}


def pod(name: str) -> dict[str, Any]:
    return dict(workloads()[name]["spec"]["template"]["spec"])


def component(name: str) -> str:
    return str(workloads()[name]["spec"]["template"]["metadata"]["labels"]["app.kubernetes.io/component"])


def containers(name: str) -> Iterator[dict[str, Any]]:
    """The containers of a pod, those that come before it too."""
    yield from pod(name).get("initContainers", ())
    yield from pod(name)["containers"]


def test_all_is_in_one_namespace_of_the_strictest_standard() -> None:
    namespace = of_kind("Namespace")["foldin"]
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    others = [each for each in documents() if each["kind"] != "Namespace"]
    assert {each["metadata"]["namespace"] for each in others} == {"foldin"}
    assert tuple(sorted(workloads())) == PODS


@pytest.mark.parametrize("name", PODS)
def test_every_pod_has_no_rights_and_is_bounded(name: str) -> None:
    spec = pod(name)
    assert spec["automountServiceAccountToken"] is False
    # Of a Service `foldin` every process would get a variable FOLDIN_PORT.
    assert spec["enableServiceLinks"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] > 0
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for each in containers(name):
        assert each["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert each["resources"]["limits"]["memory"]
        assert each["resources"]["requests"].keys() == {"cpu", "memory"}
    for volume in spec["volumes"]:
        if "emptyDir" in volume:
            assert volume["emptyDir"]["sizeLimit"]


@pytest.mark.parametrize("name", PODS)
def test_variables_are_settings_and_secrets_come_by_file(name: str) -> None:
    known = (ROOT / "docs/settings.md").read_text("utf-8")
    volumes = {volume["name"] for volume in pod(name)["volumes"]}
    claims = workloads()[name]["spec"].get("volumeClaimTemplates", ())
    volumes |= {claim["metadata"]["name"] for claim in claims}
    for each in containers(name):
        for variable in each.get("env", ()):
            assert f"`{variable['name']}`" in known or variable["name"] in OTHERS, variable
            assert "@" not in variable["value"] or re.fullmatch(r"redis://\w+@[\w-]+:6379", variable["value"])
        assert {mount["name"] for mount in each["volumeMounts"]} <= volumes


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
        (listens,) = [each for each in PODS if component(each) == name]
        ports = {port["containerPort"] for each in pod(listens)["containers"] for port in each["ports"]}
        assert {port["port"] for rule in policies[name]["spec"]["ingress"] for port in rule["ports"]} == ports
