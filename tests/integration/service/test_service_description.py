"""A running service is asked what its own description allows, and what it does not."""

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from featurestore.store import Store
from tests.support.factories import rating
from tests.support.serving import Client
from tests.support.small_trainer import serving_with_trainer

pytestmark = pytest.mark.slow

# A description cannot say that a whole number written as 7.0 is no id, nor that lists are parallel: for
# bodies the check that all it allows is accepted is left out.
CONFIG = Path(__file__).with_name("schemathesis.toml")
RUNS = {
    "queries": "--include-method GET --include-method DELETE",
    "bodies": "--include-method POST --include-method PUT --include-method PATCH "
    "--exclude-checks positive_data_acceptance",
}


@pytest.fixture
async def client(store: Store) -> AsyncIterator[Client]:
    ratings = [rating("ann", "dune", 5.0), rating("0", "0", 2.0)]
    async with serving_with_trainer(store, ratings) as client:
        yield client


@pytest.mark.parametrize("run", RUNS)
async def test_the_service_does_what_its_description_says(client: Client, run: str) -> None:
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "--config-file", str(CONFIG), "run"),
        *(f"{client.url}/openapi.json", "--checks", "all", *RUNS[run].split()),
        *("--phases", "examples,coverage,fuzzing", "--max-examples", "8", "--seed", "1"),
        # The first key that it made would close the service to it.
        *("--warnings", "off", "--no-color", "--exclude-path-regex", "^/keys"),
    ]
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        said, _ = await process.communicate()
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    assert process.returncode == 0, said.decode("utf-8", "replace")[-8000:]
