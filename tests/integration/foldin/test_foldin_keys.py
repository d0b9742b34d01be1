"""`foldin keys` on a real store: keys are shown once, kept as digests, and held by files of their owner."""

import asyncio
import re
import stat
from pathlib import Path

import pytest

from featurestore.access import count_of, digest_of_secret, is_secret
from featurestore.settings import StoreSettings
from featurestore.store import Store
from foldin.__main__ import main
from tests.support.servers import store_environment
from tests.support.waiting import some


class Keys:
    def __init__(self, capfd: pytest.CaptureFixture[str]) -> None:
        self._capfd = capfd

    async def __call__(self, *arguments: object, code: int = 0) -> str:
        try:
            ended = await asyncio.to_thread(main, ["keys", *map(str, arguments)])
        except SystemExit as exc:
            ended = int(exc.code or 0)
        said = "".join(self._capfd.readouterr())
        assert ended == code, said
        return said

    async def refuses(self, *arguments: object) -> str:
        return (await self(*arguments, code=2)).strip().splitlines()[-1]


@pytest.fixture
def keys(
    store_settings: StoreSettings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> Keys:
    monkeypatch.chdir(tmp_path)
    for name, value in store_environment(store_settings).items():
        monkeypatch.setenv(name, value)
    return Keys(capfd)


async def test_a_key_is_shown_once_and_stored_as_a_digest(keys: Keys, store: Store, tmp_path: Path) -> None:
    secret, told = (await keys("add", "shop", "--role", "rate")).strip().splitlines()
    assert "from now on every call" in told
    assert is_secret(secret)
    stored = await store.access.load()
    assert set(stored) == {"", digest_of_secret(secret)}
    key = some(stored[digest_of_secret(secret)])
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
