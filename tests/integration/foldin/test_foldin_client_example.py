"""`foldin client-example`: what it prints for the service that runs here works as it stands."""

import asyncio
import json
import shutil
import subprocess
import sys

import pytest

from featurestore.settings import StoreSettings
from foldin.__main__ import main
from tests.support.serving import serving

PROGRAMS = {"curl": ["sh", "-e"], "python": [sys.executable], "javascript": ["node", "--input-type=module"]}


async def test_the_examples_run_as_they_are_printed(
    store_settings: StoreSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    async with serving(store_settings) as (client, _):
        assert await asyncio.to_thread(main, ["client-example", "--json", "--url", client.url]) == 0
        texts = json.loads(capsys.readouterr().out)
        assert set(texts) == set(PROGRAMS)
        for language, command in PROGRAMS.items():
            if shutil.which(command[0]) is None:
                continue
            done = await asyncio.to_thread(
                subprocess.run, command, input=texts[language], capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done
            assert "accepted" in done.stdout
            assert "recommendation_id" in done.stdout
            assert "code" not in done.stdout, "none is a problem"
