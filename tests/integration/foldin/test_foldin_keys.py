"""`foldin keys` against a real store: keys are shown once, kept as digests, and held by files of their
owner.
"""

import asyncio
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from featurestore.access import count_of, digest_of_secret, is_secret
from featurestore.settings import StoreSettings
from featurestore.store import Store
from processes.blocking import plain_environment
from tests.support.serving import serving


class Keys:
    """The command, in a folder where no stack runs."""

    def __init__(self, store: StoreSettings, folder: Path) -> None:
        self._folder = folder
        self._environment = plain_environment(
            os.environ,
            {
                "FOLDIN_REDIS_URL": store.url,
                "FOLDIN_NAMESPACE": store.namespace,
                "FOLDIN_PARTITIONS": str(store.partitions),
                "PYTHONPATH": str(Path(__file__).parents[3]),
            },
        )

    def __call__(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "foldin", "keys", *map(str, arguments)]
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=60,
            env=self._environment,
            cwd=self._folder,
            check=False,
        )

    def refuses(self, *arguments: object) -> str:
        """The one line with which it ends with code 2."""
        done = self(*arguments)
        assert (done.returncode, done.stdout) == (2, ""), done
        return done.stderr.strip().splitlines()[-1]


@pytest.fixture
def keys(store_settings: StoreSettings, tmp_path: Path) -> Keys:
    return Keys(store_settings, tmp_path)


@pytest.mark.slow
async def test_a_key_is_shown_once_and_only_its_digest_is_stored(keys: Keys, store: Store) -> None:
    secret = keys("add", "shop", "--role", "rate").stdout.strip()
    assert is_secret(secret)
    stored = await store.access.load()
    assert set(stored) == {"", digest_of_secret(secret)}
    key = stored[digest_of_secret(secret)]
    assert key is not None
    assert (key.name, key.role) == ("shop", "rate")
    assert secret.encode() not in b"".join((await store.redis.hgetall(store.keys.access)).values())  # type: ignore[arg-type]  # bytes, as asked
    listed = keys("list").stdout
    assert re.fullmatch(r"shop +rate +\d{4}-\d\d-\d\d \d\d:\d\d\n", listed)
    assert secret not in listed
    assert "already" in keys.refuses("add", "shop", "--role", "read")
    assert "removed" in keys("remove", "shop").stdout
    assert count_of(await store.access.load()) == 0
    assert "no key is called 'shop'" in keys.refuses("remove", "shop")


async def test_the_last_key_that_may_operate_goes_by_a_flag_of_its_own(keys: Keys, store: Store) -> None:
    keys("add", "boss", "--role", "operate")
    keys("add", "shop", "--role", "rate")
    refused = keys.refuses("remove", "boss")
    assert "only 'boss' may operate" in refused
    assert "--last" in refused
    assert count_of(await store.access.load()) == 2
    # With another one it may go, and so may any that does not operate.
    keys("add", "next", "--role", "operate")
    assert "removed" in keys("remove", "next").stdout
    keys("add", "reader", "--role", "read")
    assert "removed" in keys("remove", "reader").stdout
    done = keys("remove", "boss", "--last")
    assert "removed" in done.stdout
    assert "no key that is left may operate" in done.stderr
    # The very last one closes the door, as over HTTP, and says so.
    assert "It was the last one" in keys("remove", "shop").stderr


@pytest.mark.slow
async def test_a_file_holds_its_key_for_its_owner_alone(keys: Keys, store: Store, tmp_path: Path) -> None:
    file = tmp_path / "shop.key"
    done = keys("add", "shop", "--role", "read", "--file", file)
    secret = file.read_text().strip()
    assert is_secret(secret)
    assert secret not in done.stdout + done.stderr
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert digest_of_secret(secret) in await store.access.load()
    assert "is there already" in keys.refuses("add", "other", "--role", "read", "--file", file)
    assert count_of(await store.access.load()) == 1
    assert "cannot be written" in keys.refuses("add", "x", "--role", "read", "--file", tmp_path / "no/such")
    assert [name for name in os.listdir(tmp_path) if "key" in name] == ["shop.key"]  # noqa: PTH208 - quick


@pytest.mark.slow
async def test_ensure_makes_a_key_once_and_brings_it_back(keys: Keys, store: Store, tmp_path: Path) -> None:
    file = tmp_path / "operator.key"
    for _ in range(2):
        assert keys("ensure", "operator", "--role", "operate", "--file", file).returncode == 0
        assert count_of(await store.access.load()) == 1
    secret = file.read_text()
    # A store that was wiped: the key that people hold is let in again.
    await store.redis.delete(store.keys.access)
    assert keys("ensure", "operator", "--role", "operate", "--file", file).returncode == 0
    assert digest_of_secret(secret.strip()) in await store.access.load()
    assert file.read_text() == secret
    # One that was removed stays removed, and the file gets another.
    keys("remove", "operator")
    assert keys("ensure", "operator", "--role", "operate", "--file", file).returncode == 0
    assert file.read_text() != secret
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    stored = await store.access.load()
    assert digest_of_secret(secret.strip()) not in stored
    assert digest_of_secret(file.read_text().strip()) in stored
    assert "role operate, not read" in keys.refuses("ensure", "operator", "--role", "read", "--file", file)
    file.write_text("not a key\n")
    assert "holds no key" in keys.refuses("ensure", "operator", "--role", "operate", "--file", file)


@pytest.mark.slow
async def test_wrong_words_are_refused_in_one_line(keys: Keys, tmp_path: Path) -> None:
    for arguments in (("add", "a b", "--role", "read"), ("add", "x", "--role", "all"), ("add", "x"), ()):
        done = keys(*arguments)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
    assert "no stack runs on" in keys.refuses("list", "--data", tmp_path)


@pytest.mark.slow
async def test_clients_bring_their_key(
    keys: Keys, store_settings: StoreSettings, store: Store, tmp_path: Path
) -> None:
    """`foldin import --url`: told what is missing, then taken, by a file."""
    ratings = tmp_path / "ratings.csv"
    ratings.write_text("user,item,rating\nann,dune,5\nbob,dune,3\n")
    file = tmp_path / "rate.key"
    keys("add", "importer", "--role", "rate", "--file", file)
    keys("add", "reader", "--role", "read", "--file", tmp_path / "read.key")

    def imported(url: str, **settings: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "foldin", "import", str(ratings), "--url", url]
        settings["HOME"] = str(tmp_path)
        environment = plain_environment(os.environ, settings)
        return subprocess.run(
            command, capture_output=True, text=True, timeout=60, env=environment, check=False
        )

    async with serving(store_settings) as (client, _):
        done = await asyncio.to_thread(imported, client.url)
        assert done.returncode == 2
        assert "asks for a key" in done.stderr
        done = await asyncio.to_thread(imported, client.url, FOLDIN_API_KEY_FILE=str(tmp_path / "read.key"))
        assert done.returncode == 1
        assert "needs a key with the role rate" in done.stderr
        done = await asyncio.to_thread(imported, client.url, FOLDIN_API_KEY_FILE=str(tmp_path / "none"))
        assert (done.returncode, "cannot be read" in done.stderr) == (2, True)
        for settings in ({"FOLDIN_API_KEY_FILE": str(file)}, {"FOLDIN_API_KEY": file.read_text().strip()}):
            done = await asyncio.to_thread(imported, client.url, **settings)
            assert done.returncode == 0, done.stderr
            assert "2 ratings written" in done.stdout
    assert sum((await store.stream.lag(1)).values()) == 4


async def test_the_first_keys_of_the_compose_file(
    store_settings: StoreSettings, store: Store, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    for folder in ("keys", "scrape-key", "player-key"):
        (data / folder).mkdir(parents=True)
    source = (Path(__file__).parents[3] / "deploy/keys/first-keys.sh").read_text("utf-8")
    script = source.replace("/data/", f"{data}/").replace("python ", f"{sys.executable} ")

    def start(*arguments: str) -> None:
        environment = plain_environment(
            os.environ,
            {
                "FOLDIN_REDIS_URL": store_settings.url,
                "FOLDIN_NAMESPACE": store_settings.namespace,
                "FOLDIN_PARTITIONS": str(store_settings.partitions),
            },
        )
        command = ["/bin/sh", "-c", script, "first-keys.sh", *arguments]
        subprocess.run(command, env=environment, cwd=tmp_path, timeout=120, check=True)

    async def made() -> dict[str, str]:
        return {key.name: key.role for key in (await store.access.load()).values() if key is not None}

    await asyncio.to_thread(start)
    assert await made() == {"operator": "operate", "prometheus": "metrics"}
    held = {path: path.read_text() for path in data.rglob("*.key")}
    assert {path.name for path in held} == {"operator.key", "prometheus.key"}
    await asyncio.to_thread(start)
    assert {path: path.read_text() for path in data.rglob("*.key")} == held
    await asyncio.to_thread(start, "play")
    assert await made() == {"operator": "operate", "prometheus": "metrics", "player": "operate"}
    # Whatever is in that folder, the others stay.
    await asyncio.to_thread(start)
    assert len(await made()) == 3
