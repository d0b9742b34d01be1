"""A real Prometheus that watches real processes by the files of the deployment, and what it raises."""

import asyncio
import contextlib
import shutil
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import aiohttp
import yaml

from processes.blocking import BlockingChild
from processes.probes import http_ok, unused_port
from tests.support.servers import missing
from tests.support.waiting import wait_until_async

FILES = Path(__file__).resolve().parents[2] / "deploy/prometheus"
# By promise: from the fault to the alert, and from the end of the fault to the end of the alert.
WITHIN_S = 60.0
# Several scrapes and evaluations, and longer than the `for` of every alert that a quiet stack may meet.
QUIET_S = 40.0
_START_S = 30.0
# Prometheus answers in milliseconds; on cores that others keep busy it waits for its turn.
_ASKED = aiohttp.ClientTimeout(20.0)


@dataclass
class Alerts:
    """What a Prometheus at `url` raises."""

    url: str
    session: aiohttp.ClientSession

    async def firing_at(self) -> set[tuple[str, str]]:
        """The alerts that fire now, each with the host and port that it is of, "" where it is of none."""
        async with self.session.get(f"{self.url}/api/v1/alerts", timeout=_ASKED) as answer:
            alerts = (await answer.json())["data"]["alerts"]
        labels = [alert["labels"] for alert in alerts if alert["state"] == "firing"]
        return {(each["alertname"], each.get("instance", "")) for each in labels}

    async def firing(self) -> set[str]:
        """The names of the alerts that fire now."""
        return {name for name, _ in await self.firing_at()}

    async def raises(self, *names: str, at: Sequence[int] = (), within_s: float = WITHIN_S) -> None:
        """Wait until each of `names` fires; of several in one, joined by `|`, any will do. `at`: the ports of
        what they are of, of which one will do.
        """
        began = time.monotonic()
        for name in names:
            wanted = set(name.split("|"))

            async def fires(wanted: set[str] = wanted) -> bool:
                found = await self.firing_at()
                return any(
                    each in wanted for each, of in found if not at or int(of.rpartition(":")[2] or 0) in at
                )

            await wait_until_async(fires, f"{name} fires", timeout_s=within_s - (time.monotonic() - began))

    async def clears(self, *names: str, within_s: float = WITHIN_S) -> None:
        """Wait until none of `names` fires."""

        async def over() -> bool:
            return not set(names) & await self.firing()

        await wait_until_async(over, f"{names} are over", timeout_s=within_s)

    async def asked(self, query: str) -> list[float]:
        """What Prometheus answers to a query, a number a series."""
        asked = self.session.get(f"{self.url}/api/v1/query", params={"query": query}, timeout=_ASKED)
        async with asked as answer:
            return [float(each["value"][1]) for each in (await answer.json())["data"]["result"]]


@contextlib.asynccontextmanager
async def watching_ports(
    folder: Path, services: Sequence[int], trainers: Sequence[int], key: str | None, looks_back: str = "5m"
) -> AsyncIterator[Alerts]:
    """A Prometheus with the files of the deployment; only where the parts are is told in another way. `key`:
    None where services ask for none. `looks_back`: in place of the five minutes for which alerts of what
    happened stay.
    """
    program = shutil.which("prometheus")
    if program is None:
        missing("prometheus")
    (folder / "key").write_text(key or "")
    text = (FILES / "prometheus.yml").read_text("utf-8")
    rules = (FILES / "alerts.yml").read_text("utf-8").replace("[5m]", f"[{looks_back}]")
    (folder / "alerts.yml").write_text(rules)
    text = text.replace("/etc/prometheus/", f"{folder}/").replace("/run/scrape-key/prometheus.key", "key")
    config = yaml.safe_load(text)
    for job, ports in zip(config["scrape_configs"], (services, trainers), strict=True):
        del job["dns_sd_configs"]
        if key is None:
            job.pop("authorization", None)
        job["static_configs"] = [{"targets": [f"127.0.0.1:{port}" for port in ports]}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    port = unused_port()
    command = [
        str(program),
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'series'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    timeout = aiohttp.ClientTimeout(2.0)
    with BlockingChild(command, folder / "prometheus.log") as child:
        ready = partial(http_ok, "127.0.0.1", port, "/-/ready")
        await asyncio.to_thread(child.wait_ready, ready, _START_S)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            yield Alerts(f"http://127.0.0.1:{port}", session)
