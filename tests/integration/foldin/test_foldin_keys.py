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
from foldin.__main__ import main
from processes.blocking import plain_environment
from tests.support.serving import serving


class Keys:
    """The command, in a folder where no stack runs, by the environment of this process."""

    def __init__(self, capfd: pytest.CaptureFixture[str]) -> None:
        self._capfd = capfd

    async def __call__(self, *arguments: object, code: int = 0) -> str:
        """Run a command of `foldin keys` to its exit code, and return what it said on both sides."""
        return await self.run("keys", *map(str, arguments), code=code)

    async def run(self, *arguments: str, code: int) -> str:
        """Run any command so."""
        try:
            ended = await asyncio.to_thread(main, list(arguments))
        except SystemExit as exc:
            ended = int(exc.code or 0)
        said = "".join(self._capfd.readouterr())
        assert ended == code, said
        return said

    async def refuses(self, *arguments: object) -> str:
        """Return the one line with which it ends with code 2."""
        said = await self(*arguments, code=2)
        return said.strip().splitlines()[-1]


@pytest.fixture
def keys(
    store_settings: StoreSettings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> Keys:
    monkeypatch.chdir(tmp_path)
    for name, value in environment_of(store_settings).items():
        monkeypatch.setenv(name, value)
    return Keys(capfd)


def environment_of(store: StoreSettings) -> dict[str, str]:
    return {
        "FOLDIN_REDIS_URL": store.url,
        "FOLDIN_NAMESPACE": store.namespace,
        "FOLDIN_PARTITIONS": str(store.partitions),
    }


async def test_a_key_is_shown_once_and_only_its_digest_is_stored(
    keys: Keys, store: Store, tmp_path: Path
) -> None:
    secret, told = (await keys("add", "shop", "--role", "rate")).strip().splitlines()
    assert "from now on every call" in told
    assert is_secret(secret)
    stored = await store.access.load()
    assert set(stored) == {"", digest_of_secret(secret)}
    key = stored[digest_of_secret(secret)]
    assert key is not None
    assert (key.name, key.role) == ("shop", "rate")
    assert secret.encode() not in b"".join((await store.redis.hgetall(store.keys.access)).values())  # type: ignore[arg-type]  # bytes, as asked
    listed = await keys("list")
    assert re.fullmatch(r"shop +rate +\d{4}-\d\d-\d\d \d\d:\d\d\n", listed)
    assert "already" in await keys.refuses("add", "shop", "--role", "read")
    for wrong in (("add", "a b", "--role", "read"), ("add", "x", "--role", "all"), ("add", "x"), ()):
        await keys.refuses(*wrong)
    assert "no stack runs on" in await keys.refuses("list", "--data", tmp_path)
    await keys("remove", "shop")
    assert count_of(await store.access.load()) == 0
    assert "no key is called 'shop'" in await keys.refuses("remove", "shop")


async def test_the_last_key_that_may_operate_goes_by_a_flag_of_its_own(keys: Keys, store: Store) -> None:
    await keys("add", "boss", "--role", "operate")
    await keys("add", "shop", "--role", "rate")
    refused = await keys.refuses("remove", "boss")
    assert "only 'boss' may operate" in refused
    assert "--last" in refused
    assert count_of(await store.access.load()) == 2
    # With another one it may go.
    await keys("add", "next", "--role", "operate")
    await keys("remove", "next")
    assert "no key that is left may operate" in await keys("remove", "boss", "--last")
    # The very last one closes the door, as over HTTP, and says so.
    assert "It was the last one" in await keys("remove", "shop")


async def test_a_file_holds_its_key_for_its_owner_alone(keys: Keys, store: Store, tmp_path: Path) -> None:
    file = tmp_path / "shop.key"
    said = await keys("add", "shop", "--role", "read", "--file", file)
    secret = file.read_text().strip()
    assert is_secret(secret)
    assert secret not in said
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert digest_of_secret(secret) in await store.access.load()
    assert "is there already" in await keys.refuses("add", "other", "--role", "read", "--file", file)
    assert "cannot be written" in await keys.refuses("add", "x", "--role", "read", "--file", "no/such")
    assert count_of(await store.access.load()) == 1


async def test_ensure_makes_a_key_once_and_brings_it_back(keys: Keys, store: Store, tmp_path: Path) -> None:
    file = tmp_path / "operator.key"
    ensure = ("ensure", "operator", "--role", "operate", "--file", file)
    for _ in range(2):
        await keys(*ensure)
        assert count_of(await store.access.load()) == 1
    secret = file.read_text()
    # A store that was wiped: the key that people hold is let in again.
    await store.redis.delete(store.keys.access)
    await keys(*ensure)
    assert digest_of_secret(secret.strip()) in await store.access.load()
    assert file.read_text() == secret
    # One that was removed stays removed, and the file gets another.
    await keys("remove", "operator", "--last")
    await keys(*ensure)
    assert file.read_text() != secret
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    stored = await store.access.load()
    assert digest_of_secret(secret.strip()) not in stored
    assert digest_of_secret(file.read_text().strip()) in stored
    assert "role operate, not read" in await keys.refuses(*ensure[:2], "--role", "read", "--file", file)
    file.write_text("not a key\n")
    assert "holds no key" in await keys.refuses(*ensure)


async def test_clients_bring_their_key(
    keys: Keys, store_settings: StoreSettings, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`foldin import --url`: told what is missing, then taken, by a file."""
    ratings = tmp_path / "ratings.csv"
    ratings.write_text("user,item,rating\nann,dune,5\nbob,dune,3\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    for role in ("rate", "read"):
        await keys("add", role, "--role", role, "--file", tmp_path / f"{role}.key")
    secret = (tmp_path / "rate.key").read_text().strip()
    async with serving(store_settings) as (client, _):
        for variable, value, code, words in (
            ("FOLDIN_API_KEY", "", 2, "asks for a key"),
            ("FOLDIN_API_KEY_FILE", str(tmp_path / "read.key"), 1, "needs a key with the role rate"),
            ("FOLDIN_API_KEY_FILE", str(tmp_path / "none"), 2, "cannot be read"),
            ("FOLDIN_API_KEY_FILE", str(tmp_path / "rate.key"), 0, "2 ratings written"),
            ("FOLDIN_API_KEY", secret, 0, "2 ratings written"),
        ):
            with monkeypatch.context() as patch:
                patch.setenv(variable, value)
                said = await keys.run("import", str(ratings), "--url", client.url, code=code)
            assert words in said
    assert sum((await store.stream.lag(1)).values()) == 4


# Some twenty processes, one after the other.
@pytest.mark.slow
@pytest.mark.timeout(400)
async def test_the_first_keys_of_the_compose_file(
    store_settings: StoreSettings, store: Store, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    for folder in ("keys", "scrape-key", "player-key"):
        (data / folder).mkdir(parents=True)
    source = (Path(__file__).parents[3] / "deploy/keys/first-keys.sh").read_text("utf-8")
    script = source.replace("/data/", f"{data}/").replace("python ", f"{sys.executable} ")

    def start(*arguments: str, script: str = script) -> None:
        environment = plain_environment(os.environ, environment_of(store_settings))
        command = ["/bin/sh", "-c", script, "first-keys.sh", *arguments]
        subprocess.run(command, env=environment, cwd=tmp_path, check=True)

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
