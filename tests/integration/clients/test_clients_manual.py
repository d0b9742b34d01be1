"""The examples of docs/clients.md run as they stand, one after the other, at a real service."""

import re
from pathlib import Path

import pytest

from featurestore.settings import StoreSettings
from featurestore.store import Store
from tests.support.examples import ran
from tests.support.factories import rating
from tests.support.small_trainer import serving_with_trainer

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[3]
README = ROOT / "clients/python/README.md"
EXAMPLE = re.compile(r"```python\n(.*?)```", re.DOTALL)


async def test_every_example_runs_as_it_stands(
    store_settings: StoreSettings, store: Store, tmp_path: Path
) -> None:
    ratings = [rating("ann", "dune", 5.0), rating("bob", "emma", 2.0)]
    blocks = [
        block for path in (README, ROOT / "docs/clients.md") for block in EXAMPLE.findall(path.read_text())
    ]
    assert len(blocks) >= 5
    # In one program, as those below use what those above import.
    program = "\n".join(blocks)
    async with serving_with_trainer(store_settings, store, ratings, users=[b"ann", b"bob"]) as served:
        assert "http://127.0.0.1:8080" in program
        program = program.replace("http://127.0.0.1:8080", served.url)
        said = await ran(program, "-W", "error", folder=tmp_path)
    # The user whom no rating names, and the ratings that came back out of the export.
    assert "unknown_user 404" in said
    assert "\n2\n" in said
