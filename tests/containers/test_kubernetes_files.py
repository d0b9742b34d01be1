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


@pytest.mark.parametrize("name", [name for name in PODS if name not in {"foldin-backup", "foldin-keys"}])
def test_probes_ask_ports_that_are_there(name: str) -> None:
    for each in pod(name)["containers"]:
        ports = {port["name"] for port in each["ports"]}
        assert "livenessProbe" in each
        for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
            for asked in (each.get(kind, {}).get(how) for how in ("httpGet", "tcpSocket")):
                assert asked is None or asked["port"] in ports
    assert name == "foldin-trainer" or "readinessProbe" in pod(name)["containers"][0]


def test_a_store_that_waits_for_room_is_alive_and_not_ready() -> None:
    (store,) = pod("foldin-store")["containers"]
    alive, ready = (store[kind]["exec"]["command"][-1] for kind in ("livenessProbe", "readinessProbe"))
    assert alive == "[ -e /tmp/waits-for-room ] || " + ready.replace("-q PONG", "-Eq 'PONG|LOADING'")
    script = (ROOT / "deploy/redis/start.sh").read_text("utf-8")
    assert "\n  touch /tmp/waits-for-room " in script
    assert {"name": "tmp", "mountPath": "/tmp"} in store["volumeMounts"]


def test_services_disruption_and_ingress_lead_to_pods() -> None:
    components = {component(name): name for name in PODS}
    for service in of_kind("Service").values():
        chosen = components[service["spec"]["selector"]["app.kubernetes.io/component"]]
        names = {port["name"] for each in pod(chosen)["containers"] for port in each["ports"]}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= names
    for name in ("foldin-nginx", "foldin-service", "foldin-store", "foldin-trainer"):
        label = {"app.kubernetes.io/component": component(name)}
        assert workloads()[name]["spec"]["selector"] == {"matchLabels": label}
    backend = of_kind("Ingress")["foldin"]["spec"]["rules"][0]["http"]["paths"][0]["backend"]["service"]
    ports = of_kind("Service")[backend["name"]]["spec"]["ports"]
    assert backend["port"]["name"] in {port["name"] for port in ports}
    # The Ingress takes what nginx behind it takes, and waits as long.
    asked = of_kind("Ingress")["foldin"]["metadata"]["annotations"]
    behind = (ROOT / "deploy/nginx/nginx.conf").read_text("utf-8")
    for name, ours in (
        ("proxy-body-size", "client_max_body_size"),
        ("proxy-read-timeout", "proxy_read_timeout"),
    ):
        largest = max(int(number) for number in re.findall(rf"{ours}\s+(\d+)[ms];", behind))
        assert asked[f"nginx.ingress.kubernetes.io/{name}"].rstrip("m") == str(largest)
    # nginx has the name in full; the others the short one.
    told = {each["name"]: each["value"] for each in pod("foldin-nginx")["containers"][0]["env"]}
    # And believes the controller of the Ingress: else all clients would have its address.
    assert told["FOLDIN_NGINX_PROXIES"]
    # The service believes nginx wherever the network of the pods may lie, as nginx the controller.
    service = {each["name"]: each.get("value") for each in pod("foldin-service")["containers"][0]["env"]}
    assert service["FOLDIN_PROXIES"] == told["FOLDIN_NGINX_PROXIES"]
    assert told["FOLDIN_SERVICE"] == "foldin-service.foldin.svc.cluster.local:8080"
    assert {"foldin-service", "foldin-store"} <= set(of_kind("Service"))


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


def test_fits_beside_an_object_store_are_on_the_claim_of_the_archive() -> None:
    (trainer,) = pod("foldin-trainer")["containers"]
    told = {each["name"]: each["value"] for each in trainer["env"]}
    mounted = {
        each["mountPath"]: each["name"] for each in trainer["volumeMounts"] if not each.get("readOnly")
    }
    assert mounted[str(Path(told["FOLDIN_FITS_DIR"]).parent)] == "archive"


def test_a_backup_is_beside_the_archive_and_the_command_of_the_manual_makes_a_restore_of_it() -> None:
    job = of_kind("CronJob")["foldin-backup"]["spec"]["jobTemplate"]
    (made,) = job["spec"]["template"]["spec"]["containers"]
    (trainer,) = pod("foldin-trainer")["containers"]
    told = {each["name"]: each["value"] for each in trainer["env"]}
    assert {each["name"]: each["value"] for each in made["env"]}.items() <= told.items()
    claims = {each["persistentVolumeClaim"]["claimName"] for each in pod("foldin-backup")["volumes"][:2]}
    assert claims == {"foldin-archive", "foldin-backup"} <= set(of_kind("PersistentVolumeClaim"))
    manual = (ROOT / "docs/operations.md").read_text("utf-8")
    (edit,) = re.findall(r"-o yaml \| (sed '[^']+') \| kubectl apply", manual)
    # As kubectl writes YAML: a line for each word.
    text = yaml.safe_dump(job, default_flow_style=False)
    done = subprocess.run(["/bin/sh", "-c", edit], input=text, capture_output=True, text=True, check=True)
    (restores,) = yaml.safe_load(done.stdout)["spec"]["template"]["spec"]["containers"]
    assert restores == {**made, "args": ["foldin", "restore", "/backup"]}


def test_the_store_is_that_of_the_compose_file() -> None:
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf-8"))["services"]["redis"]
    command = [re.sub(r"\$\{\w+:-(.*)\}", r"\1", word) for word in compose["command"]]
    assert pod("foldin-store")["containers"][0]["args"] == command
    assert pod("foldin-store")["containers"][0]["command"] == compose["entrypoint"]


def test_the_list_of_users_is_made_as_another_user_than_root(tmp_path: Path) -> None:
    (tmp_path / "password").mkdir()
    (tmp_path / "password/redis").write_text("5ec4e7")
    (tmp_path / "password/redis").chmod(0o440)
    listed = run_init(pod("foldin-store"), tmp_path)
    assert "user default off" in listed
    assert "5ec4e7" not in listed
    assert (tmp_path / "password/redis").read_text() == "5ec4e7"


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


def run_init(spec: dict[str, Any], tmp_path: Path) -> str:
    """Run what comes before the store, on folders of this machine; the list of users that it makes."""
    (made,) = spec["initContainers"]
    line = made["command"][2].replace("/etc/foldin", str(ROOT / "deploy/redis"))
    line = line.replace(" 999", f" {os.getuid()}")
    for folder in ("acl", "password", "cluster", "replica"):
        (tmp_path / folder).mkdir(exist_ok=True)
        line = re.sub(rf"(?<= )/{folder}\b", f"{tmp_path}/{folder}", line)
    subprocess.run(["/bin/sh", "-c", line], check=True, timeout=20, env={"PATH": os.environ["PATH"]})
    return (tmp_path / "acl/users.acl").read_text()


def test_a_store_that_is_a_cluster_is_of_pods_like_the_one_and_all_others_ask_it(tmp_path: Path) -> None:
    log = tmp_path / "log"
    (tmp_path / "kubectl").write_text(KUBECTL)
    (tmp_path / "kubectl").chmod(0o700)
    path = f"{tmp_path}:{os.environ['PATH']}"
    environment = {"PATH": path, "LOG": str(log), "FOLDIN_IMAGE": "r.example/foldin:1.2"}
    subprocess.run([SCRIPT, "cluster"], env=environment, check=True, timeout=30, capture_output=True)
    applied = list(yaml.safe_load_all((tmp_path / "log.applied").read_text()))
    kinds = {(each["kind"], each.get("metadata", {}).get("name")): each for each in applied}
    servers = kinds["StatefulSet", "foldin-store"]["spec"]
    names = [f"foldin-store-{number}.{servers['serviceName']}" for number in range(servers["replicas"])]
    ours = servers["template"]["spec"]
    # The same server, with what a cluster needs besides.
    (one,), (server,) = pod("foldin-store")["containers"], ours["containers"]
    assert server == {
        **one,
        "command": ["/bin/sh", "/etc/foldin/node.sh"],
        "env": [{"name": "REDIS_PEERS", "value": " ".join(names)}],
        "ports": [*one["ports"], {"name": "bus", "containerPort": 16379}],
    }
    assert ours["securityContext"] == pod("foldin-store")["securityContext"]
    form = kinds["Job", "foldin-cluster"]["spec"]["template"]["spec"]
    assert {**pod("foldin-keys"), "containers": [], "volumes": []} == {
        **form,
        "containers": [],
        "volumes": [],
    }
    assert form["containers"][0]["args"] == ["foldin.cluster", str(servers["replicas"] // 2)]
    # Each that has a store has this one, and answers for a rating when a replica has it.
    text = (tmp_path / "log.applied").read_text()
    assert set(re.findall(r"FOLDIN_DURABILITY, value: (\w+)", text)) == {"replicated"}
    urls = set(re.findall(r"redis[+\w]*://[^\"]+", text))
    hosts = ",".join(names)
    assert urls == {f"redis+cluster://foldin@{hosts}", f"redis+cluster://cluster@{hosts}"}
    # What is mounted is made, and no secret is another one.
    made = set(re.findall(r"create (?:secret generic|configmap) ([\w-]+)", log.read_text()))
    mounted = {each["secret"]["secretName"] for each in ours["volumes"] if "secret" in each}
    assert mounted == {"foldin-store", "foldin-cluster", "foldin-replica"} < made
    secrets = (tmp_path / "log.secrets").read_text().split()
    assert len(set(secrets)) == 4
    for name, secret in zip(("password/redis", "cluster/redis", "replica/replica"), secrets, strict=False):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(secret)
        (tmp_path / name).chmod(0o440)
    listed = run_init(ours, tmp_path)
    assert {line.split()[1] for line in listed.splitlines()} == {
        *("default", "health", "admin", "foldin", "replica", "cluster")
    }
    assert f"masterauth {secrets[2]}" in (tmp_path / "acl/replication.conf").read_text()
    assert not any(secret in listed for secret in secrets)
    # Beside the others' they may speak to each other, and be formed.
    policy = kinds["NetworkPolicy", "store-cluster"]["spec"]
    ports = {port["containerPort"] for port in server["ports"]}
    assert {port["port"] for port in policy["ingress"][0]["ports"]} == ports


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
