"""What a release leaves on its disks, small and kept for ever: `python -m tests.upgrade.golden` writes
`golden/VERSION.tar.gz` for the release that `last-release` names, by running that release.

In it: `store.json` (every key), `archive/` (segments, items, a fit, the trash), `backup/`, and `answers.json`
(what the service said of it).
"""

import asyncio
import base64
import json
import signal
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from redis.asyncio import Redis

from featurestore.settings import StoreSettings
from processes.blocking import BlockingChild, python_command
from tests.support.releases import checkout_of, last_release
from tests.support.servers import KIND, running_server
from tests.support.serving import Client, Service, client_of
from tests.support.trainers import trainer_environment, trainer_settings
from tests.support.waiting import wait_until_async

FOLDER = Path(__file__).with_name("golden")
NAMESPACE = "golden"
USERS, ITEMS = 12, 9


async def contents(redis: Any) -> dict[str, Any]:
    """Every key of a store, as text: a dump would be of one version of Redis."""
    found: dict[str, Any] = {}
    for key in sorted(await redis.keys("*")):
        kind = (await redis.type(key)).decode()
        match kind:
            case "string":
                value: Any = _text(await redis.get(key))
            case "hash":
                value = [[_text(a), _text(b)] for a, b in sorted((await redis.hgetall(key)).items())]
            case "list":
                value = [_text(each) for each in await redis.lrange(key, 0, -1)]
            case "set":
                value = [_text(each) for each in sorted(await redis.smembers(key))]
            case "stream":
                value = [
                    [entry.decode(), [[_text(a), _text(b)] for a, b in fields.items()]]
                    for entry, fields in await redis.xrange(key)
                ]
        found[_text(key)] = [kind, value]
    return found


async def put_contents(redis: Any, found: dict[str, Any]) -> None:
    """Put keys into an empty store."""
    for name, (kind, value) in found.items():
        key = _bytes(name)
        match kind:
            case "string":
                await redis.set(key, _bytes(value))
            case "hash":
                await redis.hset(key, mapping={_bytes(a): _bytes(b) for a, b in value})
            case "list":
                await redis.rpush(key, *map(_bytes, value))
            case "set":
                await redis.sadd(key, *map(_bytes, value))
            case "stream":
                for entry, fields in value:
                    await redis.xadd(key, {_bytes(a): _bytes(b) for a, b in fields}, id=entry)
                if not value:
                    await redis.xadd(key, {b"x": b""}, id="1-1")
                    await redis.xdel(key, "1-1")


def _text(value: bytes) -> str:
    return base64.b64encode(value).decode("ascii")


def _bytes(text: str) -> bytes:
    return base64.b64decode(text)


async def asked(client: Client, **more: Any) -> dict[str, Any]:
    """What a service says of the data: ratings of all users, and predictions of all pairs."""
    found: dict[str, Any] = {}
    for user in range(USERS):
        shown = (await client.get(f"/users/u{user}/ratings", **more)).json
        found[f"u{user}"] = {each["item_id"]: each["rating"] for each in shown.get("ratings", [])}
    pairs = [[f"u{user}", f"i{item}"] for user in range(USERS) for item in range(ITEMS)]
    predicted = (await client.post("/predict", {"pairs": pairs}, **more)).json["predictions"]
    return {"ratings": found, "predictions": [each["rating"] for each in predicted]}


async def _run(checkout: Path, folder: Path) -> None:
    (folder / "store").mkdir()
    with running_server(KIND, folder / "store") as server:
        settings = StoreSettings(url=server.url, namespace=NAMESPACE, partitions=2, timeout_s=5.0)
        environment = trainer_environment(trainer_settings(settings, folder / "archive"))
        environment |= {"PYTHONPATH": str(checkout), "PYTHONSAFEPATH": "1", "FOLDIN_SCALE": "1:5"}
        trainer = BlockingChild(python_command("trainer"), folder / "trainer.log", environment=environment)
        service = Service(settings, folder, checkout=checkout)
        await asyncio.to_thread(service.wait_for)
        redis: Any = Redis.from_url(server.url)
        async with client_of(service.url) as client:
            rows = [
                {"user_id": f"u{u}", "item_id": f"i{i}", "rating": 1 + (u * i) % 5, "timestamp": 1e9 + u}
                for u in range(USERS)
                for i in range(ITEMS)
                if (u + i) % 3
            ]
            await _done(client.post("/ratings", rows))
            await _done(client.post("/ratings", {"user_id": "gone", "item_id": "i1", "rating": 3}))
            await _done(client.post("/train"))
            await _done(client.ask("DELETE", "/users/gone"))
            history = {
                "nb_users": USERS,
                "nb_items": ITEMS,
                "user_history": [f"u{u}" for u in range(USERS) for i in range(ITEMS) if (u + i) % 2],
                "item_history": [f"i{i}" for u in range(USERS) for i in range(ITEMS) if (u + i) % 2],
                "rating_history": [
                    1 + (u + i) % 5 for u in range(USERS) for i in range(ITEMS) if (u + i) % 2
                ],
            }
            await _done(client.post("/train", history | {"replace": True}))
            await _done(client.post("/train"))
            await _done(client.post("/ratings", {"user_id": "u1", "item_id": "later", "rating": 5}))
            pointer = await redis.hgetall(f"{NAMESPACE}:live")
            deltas = f"{NAMESPACE}.2:generation:{int(pointer[b'generation'])}:deltas"

            async def folded_in() -> bool:
                return bool(await redis.xlen(deltas)) and (folder / "archive" / NAMESPACE / "trash").is_dir()

            await wait_until_async(folded_in, "an item is folded in, and the history before in the trash")
            await _foldin(environment, "backup", str(folder / "backup"))
            trainer.end(signal.SIGTERM, 30.0)
            # One that waits in its stream.
            await _done(client.post("/ratings", {"user_id": "u2", "item_id": "i2", "rating": 1}))
            (folder / "answers.json").write_text(json.dumps(await asked(client)))
        service.end()
        # Its record is there then; the key itself is in no file that is kept.
        await _foldin(environment, "keys", "add", "shop", "--role", "read", "--file", str(folder / "key"))
        (folder / "store.json").write_text(json.dumps(await contents(redis)))
        await redis.aclose()


async def _foldin(environment: dict[str, str], *arguments: str) -> None:
    command = python_command("foldin", *arguments)
    await asyncio.to_thread(subprocess.run, command, env=environment, check=True)


async def _done(call: Any) -> None:
    reply = await call
    assert reply.status < 300, reply


def main() -> int:
    """Write what is missing; a file that is there stays as it is."""
    release = last_release()
    target = FOLDER / f"{release.version}.tar.gz"
    if target.exists():
        print(f"{target} is there already", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkout = checkout_of(release, folder / "code")
        asyncio.run(_run(checkout, folder))
        FOLDER.mkdir(exist_ok=True)
        with tarfile.open(target, "w:gz") as files:
            for part in ("store.json", "answers.json", "archive", "backup"):
                files.add(folder / part, part)
    print(f"{target}: {Path(target).stat().st_size} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
