"""A running service is asked what its own description allows, and what it does not."""

import asyncio
import contextlib
import os
import re
import sys
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from featurestore.access import ROLES, new_secret
from featurestore.settings import StoreSettings
from featurestore.store import Store
from tests.support.factories import rating
from tests.support.serving import Client
from tests.support.small_trainer import serving_with_trainer
from tests.support.waiting import wait_until_async

pytestmark = pytest.mark.slow


# A description cannot say that a whole number written as 7.0 is no id, nor that lists are parallel: for
# bodies the check that all it allows is accepted is left out.
# A test run asks less than the 5,000 that a release is asked.
REQUESTS = int(os.environ.get("FOLDIN_TEST_REQUESTS", "300"))
CONFIG = Path(__file__).with_name("schemathesis.toml")
RUNS = {
    "queries": ["--include-method", "GET", "--include-method", "DELETE"],
    "bodies": [
        "--include-method",
        "POST",
        "--include-method",
        "PUT",
        "--include-method",
        "PATCH",
        "--exclude-checks",
        "positive_data_acceptance",
    ],
}


@pytest.fixture
async def client(store_settings: StoreSettings, store: Store) -> AsyncIterator[Client]:
    ratings = [rating("ann", "dune", 5.0), rating("0", "0", 2.0)]
    async with serving_with_trainer(store_settings, store, ratings, users=[b"ann"]) as client:
        yield client


@pytest.mark.parametrize("run", RUNS)
async def test_the_service_does_what_its_description_says(client: Client, run: str) -> None:
    await says_nothing_else(client, "--checks", "all", *RUNS[run])


@pytest.mark.timeout(900)
async def test_whatever_is_asked_by_whomever_is_no_5xx(store: Store, client: Client) -> None:
    """The whole API without keys, without the key that is asked for, with one that is not known, and with
    each role: `FOLDIN_TEST_REQUESTS=5000` asks so much, which is a few minutes; without it a part of that.
    """
    await fuzzed(client, [])
    headers = []
    for role in ROLES:
        secret = new_secret()
        await store.access.add(secret, role, role)
        headers.append(secret)
    # Its copy of the keys is renewed twice a second; until then the description has no 401.
    await wait_until_async(lambda: is_refused(client), "the service asks for keys")
    for sent in (None, new_secret(), *headers):
        await fuzzed(client, [] if sent is None else ["-H", f"X-API-Key: {sent}"])
    page = (await client.get("/metrics", headers={"X-API-Key": headers[-1]})).text
    by_status = Counter[str]()
    for status, count in re.findall(r'^foldin_http_requests_total\{.*status="(\d+)".*\} (\S+)$', page, re.M):
        by_status[status] += int(float(count))
    assert [status for status in by_status if status.startswith("5")] == [], by_status
    assert {"200", "401", "403"} <= set(by_status)
    assert sum(by_status.values()) >= REQUESTS, by_status
    print(f"{sum(by_status.values())} requests, by status: {dict(sorted(by_status.items()))}")


async def is_refused(client: Client) -> bool:
    return (await client.get("/users/ann")).status == 401


async def fuzzed(client: Client, more: list[str]) -> None:
    # Six kinds of callers, and two dozen calls of the description; not each has so many examples.
    examples = max(3, REQUESTS // (6 * 24))
    checks = "not_a_server_error,status_code_conformance"
    drawn = "fuzzing" if REQUESTS < 5_000 else "examples,coverage,fuzzing"
    await says_nothing_else(
        client, "--checks", checks, *more, phases=drawn, examples=examples, timeout_s=600.0
    )


async def says_nothing_else(
    client: Client,
    *more: str,
    phases: str = "examples,coverage,fuzzing",
    examples: int = 8,
    timeout_s: float = 100.0,
) -> None:
    """Ask it all that its description allows, and what it does not."""
    # The first key that it made would close the service to it.
    closing = () if "-H" in more else ("--exclude-path-regex", "^/keys")
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "--config-file", str(CONFIG), "run"),
        *(f"{client.url}/openapi.json", *more),
        *("--phases", phases, "--max-examples", str(examples), "--seed", "1"),
        *("--warnings", "off", "--no-color"),
        *closing,
    ]
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        said, _ = await asyncio.wait_for(process.communicate(), timeout_s)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    assert process.returncode == 0, said.decode("utf-8", "replace")[-8000:]
