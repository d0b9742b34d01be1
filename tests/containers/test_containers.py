"""The real Dockerfile and docker-compose.yml on a real engine: what they promise while parts come and go.

An engine is, in this order: one that `FOLDIN_CONTAINER_ENGINE` starts (a command that prints exports for the
shell), one that answers already, or the tool that lies beside the checkout. Each run is a compose project of
its own and removes all that it made, its volumes included.
"""

import asyncio
import contextlib
import fcntl
import io
import json
import os
import secrets
import shutil
import subprocess
import tempfile
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from processes.probes import unused_port
from tests.support.servers import missing
from tests.support.serving import JSON, Client, client_of
from tests.support.waiting import wait_until, wait_until_async

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT.parent / "shared" / "tools" / "container-engine"
IMAGE = "foldin:test"
# Where it would be published from, as its builder says.
ADDRESSES = {"url": "https://recommender.test", "source": "https://recommender.test/foldin.git"}

# Starting an engine, building the image and the first start all count for whichever test comes first.
pytestmark = [pytest.mark.slow, pytest.mark.containers, pytest.mark.timeout(900)]


def exports_of(command: str, environ: Mapping[str, str]) -> dict[str, str]:
    """`environ` with what `command` prints as exports. Raises CalledProcessError and TimeoutExpired."""
    script = f'exports="$({command})" && eval "$exports" && exec env -0'
    done = subprocess.run(
        ["bash", "-c", script], env=environ, capture_output=True, text=True, timeout=600, check=True
    )
    return dict(line.split("=", 1) for line in done.stdout.split("\0") if "=" in line)


def compose_command(environ: Mapping[str, str]) -> list[str] | None:
    for command in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(command[0]) is None:
            continue
        with contextlib.suppress(subprocess.TimeoutExpired):
            asked = subprocess.run(
                [*command, "ls"], env=environ, capture_output=True, timeout=20, check=False
            )
            if asked.returncode == 0:
                return command
    return None


@pytest.fixture(scope="module")
def engine() -> Iterator[tuple[list[str], dict[str, str]]]:
    """The compose command and the environment in which it reaches an engine."""
    environ = dict(os.environ)
    state = None
    try:
        if given := environ.get("FOLDIN_CONTAINER_ENGINE"):
            environ = exports_of(given, environ)
        elif compose_command(environ) is None:
            if not TOOL.exists():
                missing("a container engine (FOLDIN_CONTAINER_ENGINE is not set, and no tool starts one)")
            if os.geteuid() != 0:
                missing("root, for the tool that starts a container engine,")
            # A socket of its own: an engine that was running before stays as it is.
            state = environ["CONTAINER_ENGINE_STATE"] = tempfile.mkdtemp(prefix="foldin-engine-")
            with (Path(tempfile.gettempdir()) / "foldin-engine.lock").open("w") as lock:
                # It may have to install packages, which two at once cannot.
                fcntl.flock(lock, fcntl.LOCK_EX)
                environ = exports_of(f"bash '{TOOL}' start", environ)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as exc:
        said = exc.stderr.decode("utf-8", "replace") if isinstance(exc.stderr, bytes) else exc.stderr
        missing(f"a container engine ({exc}: {said})")
    command = compose_command(environ)
    if command is None:
        missing("a container engine (it was started and does not answer)")
    yield command, environ
    if state is not None:
        subprocess.run(["bash", str(TOOL), "stop"], env=environ, timeout=60, check=False)
        shutil.rmtree(state, ignore_errors=True)


class Stack:
    def __init__(self, command: Sequence[str], environ: Mapping[str, str]) -> None:
        self.project = f"foldin-test-{secrets.token_hex(4)}"
        port = unused_port()
        self.url = f"http://127.0.0.1:{port}"
        self.key = ""
        self._command = [*command, "--project-name", self.project]
        self.environ = {
            **{name: text for name, text in environ.items() if not name.startswith("FOLDIN_")},
            "FOLDIN_IMAGE": IMAGE,
            "FOLDIN_PUBLISH": f"127.0.0.1:{port}",
            # What a busy disk takes is not what these tests are about.
            "FOLDIN_STORE_TIMEOUT_S": "5",
        }

    def run(self, *arguments: str, timeout_s: float = 120.0) -> str:
        """Run one compose command; what it says. Raises AssertionError with its errors when it fails."""
        command, environ = [*self._command, *arguments], self.environ
        done = subprocess.run(
            command, env=environ, cwd=ROOT, capture_output=True, text=True, timeout=timeout_s, check=False
        )
        assert done.returncode == 0, f"compose {' '.join(arguments)}\n{done.stderr[-4000:]}"
        return done.stdout

    def scale(self, replicas: int) -> None:
        self.run("up", "--detach", "--no-build", "--no-recreate", "--scale", f"service={replicas}", "service")

    def containers(self, service: str) -> list[dict[str, Any]]:
        text = self.run("ps", "--all", "--format", "json", service)
        # One object a line, or one array, by the version.
        found = json.loads(text) if text.startswith("[") else [json.loads(line) for line in text.splitlines()]
        return [dict(container) for container in found]

    def healthy(self, service: str, replicas: int = 1) -> bool:
        health = [container.get("Health") for container in self.containers(service)]
        return health == ["healthy"] * replicas


@pytest.fixture(scope="module")
def stack(engine: tuple[list[str], dict[str, str]]) -> Iterator[Stack]:
    """The built image, and the stack as `docker compose up` leaves it, well and trained on `WORLD`."""
    stack = Stack(*engine)
    try:
        told = (f"--build-arg={name.upper()}={address}" for name, address in ADDRESSES.items())
        stack.run("build", *told, "service", timeout_s=600)
        stack.run("up", "--detach", "--no-build", "redis", "service", "nginx", "trainer")
        wait_until(lambda: stack.healthy("service"), "the service is healthy", timeout_s=90)
        # As the file itself says.
        show = ("run", "--rm", "--no-deps", "--entrypoint", "cat", "keys", "/data/keys/operator.key")
        stack.key = stack.run(*show).strip()
        asyncio.run(train(stack))
        yield stack
    except BaseException:
        with contextlib.suppress(AssertionError, subprocess.TimeoutExpired):
            print(stack.run("logs", "--no-color", "--tail", "40", timeout_s=30))
        raise
    finally:
        stack.run("down", "--volumes", "--remove-orphans", "--timeout", "5", timeout_s=120)


USERS, ITEMS = 40, 30
WORLD = {
    "nb_users": USERS,
    "nb_items": ITEMS,
    "user_history": [user for user in range(USERS) for _ in range(10)],
    "item_history": [(user + 3 * step) % ITEMS for user in range(USERS) for step in range(10)],
    "rating_history": [1 + (user % 3 + step % 3) for user in range(USERS) for step in range(10)],
}


async def train(stack: Stack) -> None:
    async with client_of(stack.url, stack.key) as client:
        assert (await client.post("/train", {**WORLD, "replace": True})).ok.json


def in_service(stack: Stack, program: str) -> str:
    return stack.run("exec", "-T", "service", "python", "-c", program).strip()


def test_the_image_runs_without_privileges_and_cannot_be_written(stack: Stack) -> None:
    assert in_service(stack, "import os; print(os.getuid(), os.getgid())") == "10001 10001"
    folders = "('/', '/opt/foldin', '/usr', '/etc', '/data')"
    program = f"import os; print([path for path in {folders} if os.access(path, os.W_OK)])"
    assert in_service(stack, program) == "[]"
    program = "print(dict(line.split(':') for line in open('/proc/1/status'))['CapEff'].strip())"
    assert int(in_service(stack, program), 16) == 0
    program = "from foldin.featurestore.users.compiled import *; print(len(kept([HOME / file_name()])))"
    assert int(in_service(stack, program)) > 10_000, "the compiled fold-in"
    # What a fit finds of the loops that the image brings along, and whether it compiles any more.
    program = """if True:
        from foldin.factors import fit_code
        def found():
            files = fit_code.folder_of(fit_code.ALWAYS[0]).parent.rglob("*.nbc")
            return {file: file.stat().st_mtime_ns for file in files}
        brought, before = fit_code.take_brought(), found()
        fit_code.compile_loops()
        print(brought, len(before) > len(fit_code.ALWAYS), found() == before)"""
    assert in_service(stack, program) == "True True True"


async def test_the_image_says_what_it_is_and_has_the_manual(stack: Stack) -> None:
    # The API of the engine: not every one has a command beside Compose.
    socket = stack.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock").removeprefix("unix://")
    async with (
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(socket)) as session,
        session.get(f"http://engine/images/{IMAGE}/json") as answer,
    ):
        labels = (await answer.json())["Config"]["Labels"]
    about = "org.opencontainers.image."
    told = {name.removeprefix(about): text for name, text in labels.items() if name.startswith(about)}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    known = {"title": "foldin", "licenses": project["license"], "version": project["version"], **ADDRESSES}
    assert told.items() >= known.items()
    assert told.keys() - known.keys() == {"description", "revision"}
    async with client_of(stack.url, stack.key) as client:
        # Without a manual there is no such file; the page is of a notebook that was run.
        assert (await client.get("/manual/searchindex.js")).status == 200
        assert "foldin_trainer_leading" in (await client.get("/manual/reference/metrics.html")).ok.text


async def test_answers_through_nginx_carry_the_callers_request_id_and_problems_are_documents(
    stack: Stack,
) -> None:
    async with client_of(stack.url, stack.key) as client:
        reply = (await client.get("/predict?user_id=1&item_id=2", headers={"X-Request-ID": "test-1"})).ok
        assert reply.headers["X-Request-ID"] == "test-1"
        assert 1 <= reply.json["rating"] <= 5
        for payload_bytes in (11_000_000, 12_000_000):  # refused by the service, and by nginx before it
            body = io.BytesIO(bytes(payload_bytes))
            reply = await client.ask("POST", "/ratings", data=body, headers=JSON)
            assert reply.headers["Content-Type"].startswith("application/problem+json")
            assert (reply.status, reply.json["code"]) == (413, "body_too_large")


async def test_scaling_up_and_down_loses_no_request(stack: Stack) -> None:
    failures: list[str] = []
    asked = 0
    stop = asyncio.Event()

    async def rate_and_ask(client: Client, number: int) -> None:
        nonlocal asked
        round_ = 0
        while not stop.is_set():
            round_ += 1
            user_id = f"scale-{number}-{round_}"
            try:
                rated = {"user_id": user_id, "item_id": round_ % ITEMS, "rating": 1 + round_ % 5}
                reply = await client.post("/ratings", rated)
                if reply.status >= 300:
                    failures.append(f"rating: {reply}")
                for item in range(3):
                    pair = f"user_id={user_id}&item_id={item}"
                    reply = await client.get(f"/predict?{pair}")
                    # One that says so may lack what came last: a store on busy cores answers late.
                    told = reply.json if reply.status == 200 else {"basis": "none"}
                    if not (told["basis"].startswith("user") or "degraded" in told):
                        failures.append(f"prediction: {reply}")
            except (aiohttp.ClientError, TimeoutError) as exc:
                failures.append(repr(exc))
            asked += 4

    async def more() -> None:
        before = asked
        await wait_until_async(lambda: asked > before + 400, "400 more were asked")

    async with client_of(stack.url, stack.key) as client:
        clients = [asyncio.create_task(rate_and_ask(client, number)) for number in range(8)]
        try:
            await more()
            await asyncio.to_thread(stack.scale, 3)
            await asyncio.to_thread(
                wait_until, lambda: stack.healthy("service", 3), "three replicas are healthy"
            )
            await more()
            await asyncio.to_thread(stack.scale, 1)
            await asyncio.to_thread(wait_until, lambda: stack.healthy("service"), "one replica is left")
            await more()
        finally:
            stop.set()
            await asyncio.gather(*clients)
    assert not failures, f"{len(failures)} of {asked}: {failures[:5]}"


async def test_without_a_key_nothing_is_answered_and_nothing_else_is_new(stack: Stack) -> None:
    async with client_of(stack.url) as client:
        reply = await client.get("/predict?user_id=1&item_id=2")
        assert (reply.status, reply.json["code"]) == (401, "unauthorized")
        headers = {"Authorization": f"Bearer {stack.key}", "Origin": "http://evil.example"}
        headers["X-Forwarded-For"] = "6.6.6.6"
        reply = await client.ask("POST", "/train", headers=headers)
        assert (reply.status, reply.json["code"]) == (403, "cross_site")
    # The record of it: by whom, and from where, which is the machine and not nginx.
    lines = [
        line for line in stack.run("logs", "--no-color", "service").splitlines() if "foldin.audit" in line
    ]
    assert any("key=operator call=POST /train" in line and "status=403" in line for line in lines)
    assert not any("client=6.6.6.6" in line for line in lines)
    assert not any(stack.key in line for line in lines)
    assert stack.key not in stack.run("logs", "--no-color")
