"""The tables of the page of metrics: what the processes of a stack tell Prometheus."""

import os
import tempfile
import time
import urllib.request
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families
from stack import World, free_port, stack

from foldin_client import Client

# Figures are handed over every two seconds.
TURNS, TURN_S = 100, 0.2


def table_of(exposition: str) -> str:
    """Every metric with its type, its labels and what it is, as Markdown."""
    lines = ["| metric | type | labels | is |", "|---|---|---|---|"]
    for family in sorted(text_string_to_metric_families(exposition), key=lambda each: each.name):
        labels = sorted({label for sample in family.samples for label in sample.labels} - {"le"})
        name = f"{family.name}_total" if family.type == "counter" else family.name
        shown = ", ".join(f"`{label}`" for label in labels)
        lines.append(f"| `{name}` | {family.type} | {shown} | {family.documentation} |")
    return "\n".join(lines)


def told(foldin: Client) -> str:
    """Ask a stack for what brings each metric about; return what the service then tells."""
    foldin.rate(World(30, 40).ratings(0.5, range(30)))
    foldin.refit()
    for name in ("plain", "mixed"):
        foldin.put_scenario(name)
    foldin.put_experiment(
        "lists", arms=[{"name": name, "share": 0.5, "scenario": name} for name in ("plain", "mixed")]
    )
    foldin.recommend("user1", impressions=True)
    for _ in range(TURNS):
        service = foldin.metrics()
        if "foldin_generation_lists{" in service and "foldin_arm_lists{" in service:
            break
        time.sleep(TURN_S)
    return service


def tables() -> tuple[str, str]:
    """The metrics of a service and of a trainer, of a stack that runs meanwhile."""
    address = os.environ["FOLDIN_TRAINER_ADDRESS"] = f"127.0.0.1:{free_port()}"
    with tempfile.TemporaryDirectory() as folder, stack(Path(folder) / "data") as foldin:
        service = told(foldin)
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=30) as answer:
            trainer = answer.read().decode()
    return table_of(service), table_of(trainer)
