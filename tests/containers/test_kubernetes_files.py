"""The files for Kubernetes: what they promise of every pod, and that they name only what there is.

`make manifests` holds them against the schemas of Kubernetes.
"""

import os
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "deploy/kubernetes"
SCRIPT = FOLDER / "apply.sh"
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


KUBECTL = """#!/bin/sh
echo "$@" >>"$LOG"
case "$*" in
  *"get secret"*) [ -e "$LOG.made" ]; exit ;;
  *"create secret"*) cat >>"$LOG.secrets"; echo >>"$LOG.secrets" ;;
  *"create configmap"*) echo "kind: ConfigMap" ;;
  *"apply -f -"*) { echo ---; cat; } >>"$LOG.applied" ;;
esac
"""


def test_the_script_makes_what_the_pods_mount_and_makes_secrets_once(tmp_path: Path) -> None:
    """With a kubectl that writes down what it is asked: no cluster can be had here."""
    log = tmp_path / "log"
    (tmp_path / "kubectl").write_text(KUBECTL)
    (tmp_path / "kubectl").chmod(0o700)
    environment = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "LOG": str(log),
        "FOLDIN_IMAGE": "r.example/foldin:1.2",
    }
    subprocess.run([SCRIPT], env=environment, check=True, timeout=30, capture_output=True)
    asked = log.read_text()
    made = set(re.findall(r"create (?:secret generic|configmap) ([\w-]+)", asked))
    mounted = {
        volume.get("secret", volume.get("configMap", {})).get(
            "secretName", volume.get("configMap", {}).get("name")
        )
        for name in PODS
        for volume in pod(name)["volumes"]
        if "secret" in volume or "configMap" in volume
    }
    assert made == mounted
    password, key = (tmp_path / "log.secrets").read_text().split()
    assert re.fullmatch("[0-9a-f]{64}", password)
    assert re.fullmatch(r"fk_[A-Za-z0-9_-]{43}", key)
    applied = (tmp_path / "log.applied").read_text()
    assert applied.count("image: r.example/foldin:1.2\n") == 4
    assert "$FOLDIN_IMAGE" not in applied
    assert applied.count("image: redis:8\n") == 2
    assert applied.count("image: nginx:stable\n") == 1
    # Each file of the folder, and no other.
    named = re.findall(r"\bin ((?:[\w$]+ ?)+); do", SCRIPT.read_text())[-1].replace("$", "").split()
    assert {f"{name}.yaml" for name in named} == {path.name for path in FOLDER.glob("*.yaml")} - {
        "namespace.yaml"
    }
    (tmp_path / "log.made").touch()
    subprocess.run([SCRIPT], env=environment, check=True, timeout=30, capture_output=True)
    assert len((tmp_path / "log.secrets").read_text().split()) == 2
    (tmp_path / "log.applied").unlink()
    pinned = {
        "FOLDIN_REDIS_IMAGE": f"redis@sha256:{'a' * 64}",
        "FOLDIN_NGINX_IMAGE": f"nginx@sha256:{'b' * 64}",
    }
    subprocess.run([SCRIPT], env=environment | pinned, check=True, timeout=30, capture_output=True)
    applied = (tmp_path / "log.applied").read_text()
    assert applied.count(f"image: redis@sha256:{'a' * 64}\n") == 2
    assert applied.count(f"image: nginx@sha256:{'b' * 64}\n") == 1
    assert "image: redis:8" not in applied
    without = subprocess.run(
        [SCRIPT],
        env={**environment, "FOLDIN_IMAGE": ""},
        check=False,
        timeout=30,
        capture_output=True,
        text=True,
    )
    assert without.returncode != 0
    assert "say which image" in without.stderr


def test_the_scripts_that_are_mounted_are_there() -> None:
    for name in PODS:
        folders = {
            volume["name"]: volume["configMap"]["name"].removeprefix("foldin-")
            for volume in pod(name)["volumes"]
            if "configMap" in volume
        }
        for each in containers(name):
            words = " ".join([*each.get("command", ()), *each.get("args", ())])
            for mount in each["volumeMounts"]:
                if mount["name"] in folders:
                    scripts = re.findall(rf"{mount['mountPath']}/([\w.-]+)", words)
                    assert scripts, words
                    assert all(
                        (ROOT / "deploy" / folders[mount["name"]] / script).is_file() for script in scripts
                    )
