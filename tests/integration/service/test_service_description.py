"""A running service is asked what its own description allows, and what it does not."""

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator

import pytest

from featurestore.access import new_secret
from featurestore.settings import StoreSettings
from featurestore.store import Store
from tests.support.factories import rating
from tests.support.serving import Client
from tests.support.small_trainer import serving_with_trainer

# A description cannot say that a whole number written as 7.0 is no id, nor that lists are parallel: for
# bodies the check that all it allows is accepted is left out.
RUNS = {
    "queries": ["--include-method", "GET", "--include-method", "DELETE"],
    "bodies": ["--include-method", "POST", "--exclude-checks", "positive_data_acceptance"],
}


@pytest.fixture
async def client(store_settings: StoreSettings, store: Store) -> AsyncIterator[Client]:
    ratings = [rating("ann", "dune", 5.0), rating("0", "0", 2.0)]
    async with serving_with_trainer(store_settings, store, ratings, users=[b"ann"]) as client:
        yield client


@pytest.fixture
async def key(store: Store) -> str:
    """A key that may do everything."""
    secret = new_secret()
    await store.access.add(secret, "operator", "operate")
    return secret


# What is asked does not depend on the kind of store.
@pytest.mark.parametrize("store_server", ["redis"], indirect=True)
@pytest.mark.parametrize("run", RUNS)
async def test_the_service_does_what_its_description_says(client: Client, run: str) -> None:
    await says_nothing_else(client, "--checks", "all", *RUNS[run])


@pytest.mark.parametrize("store_server", ["redis"], indirect=True)
@pytest.mark.parametrize("run", RUNS)
async def test_with_a_key_it_does_the_same(key: str, client: Client, run: str) -> None:
    """`all` has a check that a call without its key, and with another, is refused."""
    await says_nothing_else(client, "--checks", "all", *RUNS[run], "-H", f"Authorization: Bearer {key}")


@pytest.mark.parametrize("store_server", ["redis"], indirect=True)
async def test_without_the_key_that_it_asks_for_nothing_breaks_it(key: str, client: Client) -> None:
    checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
    await says_nothing_else(client, "--checks", checks)


async def says_nothing_else(client: Client, *more: str) -> None:
    """Ask it all that its description allows, and what it does not."""
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "run", f"{client.url}/openapi.json", *more),
        *("--phases", "examples,coverage,fuzzing", "--max-examples", "8", "--seed", "1"),
        *("--warnings", "off", "--no-color"),
    ]
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        said, _ = await asyncio.wait_for(process.communicate(), 100.0)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    assert process.returncode == 0, said.decode("utf-8", "replace")[-8000:]
