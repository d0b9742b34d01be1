"""No secret leaves its file: not in what a stack logs at DEBUG, not in its metrics, its command lines or its
data, whatever is asked of it and whatever breaks.
"""

import contextlib
import os
import signal
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest
from redis import Redis

from featurestore.access import new_secret
from featurestore.settings import StoreSettings
from processes.blocking import BlockingChild, python_command
from tests.support.certificates import certificate
from tests.support.secrets import make_secrets
from tests.support.servers import KIND, StoreServer, running_server
from tests.support.serving import Service
from tests.support.trainers import trainer_environment, trainer_settings
from tests.support.waiting import wait_until_async

pytestmark = pytest.mark.slow


NAMESPACE = "secrets-test"
WRONG_KEY, WRONG_PASSWORD = new_secret(), "wrong-password-7f3a9c"
BAD_REQUESTS = (
    ("GET", "/predict?user_id=ann", None),
    ("GET", "/predict?user_id=ann&item_id=i1&api_key={key}", None),
    ("POST", "/ratings", b"{"),
    ("POST", "/ratings", b'{"user_id": "ann", "item_id": "i1", "rating": 99}'),
    ("GET", "/nothing/{key}", None),
)


def commands_of(pid: int) -> Iterator[bytes]:
    """The command lines of a process and its children, as `ps` shows them."""
    yield Path(f"/proc/{pid}/cmdline").read_bytes()
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text("ascii").split():
        yield from commands_of(int(child))


class Stack:
    """A store with users, a service over TLS and a trainer, all at DEBUG; the secrets of all of them."""

    def __init__(self, server: StoreServer, folder: Path, acl: Path, password: Path) -> None:
        self.server, self.folder = server, folder
        url = server.url.replace("//", "//foldin@")
        settings = StoreSettings(url=url, namespace=NAMESPACE, partitions=4, timeout_s=2.0)
        self.certificate = certificate(folder, "known")
        private = self.certificate.with_suffix(".key")
        said = {"FOLDIN_REDIS_PASSWORD_FILE": str(password / "redis"), "FOLDIN_LOG_LEVEL": "DEBUG"}
        tls = {"FOLDIN_TLS_CERT": str(self.certificate), "FOLDIN_TLS_KEY": str(private)}
        trainer = trainer_settings(settings, folder / "archive")
        self.environment = {**os.environ, **trainer_environment(trainer), **said}
        self.said: list[bytes] = []
        self.key = self.made_key("operator", "operate")
        self.other = self.made_key("shop", "rate")
        self.service = Service(settings, folder, environment={**said, **tls}, workers=2)
        self.trainer = BlockingChild(
            python_command("trainer"), folder / "trainer.log", environment=self.environment
        )
        self.secrets = {
            "the store's password": (password / "redis").read_bytes().strip(),
            "the administrator's password": (acl / "admin").read_bytes().strip(),
            "the operator's key": self.key.encode(),
            "another key": self.other.encode(),
            "a key that is not known": WRONG_KEY.encode(),
            "a wrong password": WRONG_PASSWORD.encode(),
            "the TLS key": private.read_bytes().splitlines()[2],
        }

    def made_key(self, name: str, role: str) -> str:
        """A key, made by the command into its file."""
        file = self.folder / f"{name}.key"
        self.command("keys", "add", name, "--role", role, "--file", str(file))
        return file.read_text().strip()

    def command(self, *arguments: str, **changes: str) -> None:
        """Run `foldin`, and keep what it says."""
        done = subprocess.run(
            python_command("foldin", *arguments),
            env={**self.environment, **changes},
            capture_output=True,
            timeout=30,
            check=False,
        )
        self.said += [done.stdout, done.stderr]

    def end(self) -> None:
        for process in (self.service.process, self.trainer):
            process.end(signal.SIGTERM, 30.0)


async def ask_all(stack: Stack) -> None:
    """Good and bad calls, with keys that are known and not, and while the store is away."""
    url = f"https://127.0.0.1:{stack.service.port}"
    connector = aiohttp.TCPConnector(ssl=ssl.create_default_context(cafile=stack.certificate))
    async with aiohttp.ClientSession(connector=connector) as session:

        async def ask(method: str, path: str, key: str, body: bytes | None = None) -> int:
            headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
            target = url + path.replace("{key}", stack.other)
            async with session.request(method, target, data=body, headers=headers) as answer:
                stack.said.append(await answer.read())
                return answer.status

        async def ready() -> bool:
            with contextlib.suppress(aiohttp.ClientConnectionError):
                answered = await ask("GET", "/readyz", stack.key) == 200
                return answered and b"degraded" not in stack.said[-1]
            return False

        await wait_until_async(ready, "the service has a generation")
        row = b'{"user_id": "ann", "item_id": "i1", "rating": 4}'
        assert await ask("POST", "/ratings", stack.other, row) == 200
        assert await ask("POST", "/train", stack.key) == 200
        assert await ask("GET", "/predict?user_id=ann&item_id=i1", stack.other) == 200
        assert await ask("POST", "/train", stack.other) == 403
        assert await ask("GET", "/predict?user_id=ann&item_id=i1", WRONG_KEY) == 401
        for method, path, body in BAD_REQUESTS:
            assert await ask(method, path, stack.key, body) in {200, 400, 404, 422}
        password = stack.secrets["the administrator's password"].decode()
        admin = Redis(port=stack.server.port, username="admin", password=password)
        # What cannot be read, and connections that are cut.
        for partition in range(4):
            admin.set(f"{NAMESPACE}.1:{{{partition}}}:user:bob", "a text")
        assert await ask("GET", "/users/bob", stack.key) == 503
        admin.client_kill_filter(_type="normal", skipme=True)
        await ask("GET", "/predict?user_id=ann&item_id=i1", stack.key)
        admin.close()
        for path in ("/metrics", "/openapi.json", "/generations"):
            assert await ask("GET", path, stack.key) in {200, 503}
        stack.server.kill()
        assert await ask("GET", "/predict?user_id=ann&item_id=i1", stack.key) == 200
        assert b"degraded" in stack.said[-1]
        assert await ask("POST", "/ratings", stack.key, row) == 503
        stack.server.start()
        await wait_until_async(ready, "the store is back")


@pytest.mark.timeout(120)
async def test_no_secret_is_logged_shown_or_stored(tmp_path: Path) -> None:
    data = tmp_path / "data"
    (data / "store").mkdir(parents=True)
    acl, password = make_secrets(tmp_path, NAMESPACE)
    with running_server(KIND, data / "store", "--aclfile", str(acl / "users.acl")) as server:
        stack = Stack(server, data, acl, password)
        try:
            await ask_all(stack)
            shown = b"\0".join([*commands_of(stack.service.process.pid), *commands_of(stack.trainer.pid)])
        finally:
            stack.end()
        # A wrong password, in the address of all places.
        wrong = server.url.replace("//", f"//foldin:{WRONG_PASSWORD}@")
        stack.command("keys", "list", FOLDIN_REDIS_URL=wrong)
        stack.command("verify", FOLDIN_REDIS_URL=wrong)
        stack.command("keys", "list")
        assert any(b"operator" in text for text in stack.said)
    places = {"a command line": shown, "what was answered or printed": b"\0".join(stack.said)}
    own = {data / "operator.key", data / "shop.key", stack.certificate.with_suffix(".key")}
    for path in data.rglob("*"):
        if path.is_file() and path not in own:
            places[str(path.relative_to(data))] = path.read_bytes()
    assert b"DEBUG" in places[stack.service.log.name]
    found = [
        f"{secret} is in {place}"
        for secret, text in stack.secrets.items()
        for place, content in places.items()
        if text in content
    ]
    assert found == []
    # What is looked for can be found: the digest of a key, and the name of its owner, are where they belong.
    assert any(b"operator" in content for place, content in places.items() if place.startswith("store/"))
