"""`foldin doctor`: looks at all that Foldin needs, in an order in which it is mended, and says what to do.

Invariant: nothing is changed: no namespace is created, no folder made, nothing written; and whatever does not
answer is given up in time.
"""

import asyncio
import json
import os
import shlex
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TypeVar, cast
from urllib.parse import urlsplit

import httpx
from rich.console import Console
from rich.text import Text

from featurestore.client import Client
from featurestore.cluster.servers import keys_of, looking
from featurestore.errors import StoreError
from featurestore.keys import Keys
from featurestore.leases import Leases
from featurestore.settings import StoreSettings, redacted
from foldin.address import api_client, find_api, running_stack, running_stack_url, told_problem
from foldin.commands.doctor import machine, store
from foldin.commands.doctor.findings import Finding, Status, worst, worst_of
from foldin.settings import DoctorOptions, FrontDoorSettings, StackOptions
from foldin.up import KEY_FILE
from foldin_client import AsyncClient, BusyError, FoldinError, NoAnswerError, ProblemError
from foldin_client.models import Ready
from foldin_client.wire import is_here, without_user
from processes import module_name
from processes.errors import CannotStartError
from processes.probes import http_ok
from processes.settings import Environment, SettingsError, api_key_of, load
from trainer.settings import TrainerSettings

_T = TypeVar("_T")
_COLOURS: Mapping[Status, str] = {"ok": "green", "warn": "yellow", "fail": "bold red"}
LOOPBACK = "127.0.0.1"
_START = "start everything with `foldin up`"


@dataclass(frozen=True, slots=True)
class Place:
    """What is looked at. `stack`: one runs on `data`; `wanted`: there should be a store; `api`: address of
    the service; `named`: by who asks.
    """

    data: Path
    stack: bool
    wanted: bool
    api: str
    named: bool
    key: str | None
    timeout_s: float
    trainer: TrainerSettings
    environ: Mapping[str, str]

    @property
    def shown(self) -> str:
        """The address of the service without a password."""
        return without_user(self.api)


def run_doctor(options: DoctorOptions, settings: FrontDoorSettings) -> int:
    """Look, and print what was found; return the exit code: 1 where something fails; a warning does not."""
    place, findings = _find_place(options, settings)
    # Where the usual folder is not that of the stack which runs.
    if place is not None and options.data is None and not place.wanted:
        folder = asyncio.run(_folder_of_stack(place))
        place, findings = _find_place(replace(options, data=folder), settings)
    if place is not None:
        findings += asyncio.run(_look(place))
    _print(findings)
    found = worst(findings)
    settings.emit({"worst": found, "checks": [asdict(each) for each in findings]})
    return 1 if found == "fail" else 0


def _find_place(options: DoctorOptions, settings: FrontDoorSettings) -> tuple[Place | None, list[Finding]]:
    """Return what to look at, None where the settings do not tell, and what was found of these."""
    data = options.data or settings.data
    stack = running_stack(data)
    folders = {"FOLDIN_ARCHIVE_DIR": str(data / "archive"), "FOLDIN_STORE_DIR": str(data / "store")}
    # Without a stack the archive is where `python -m trainer` has it, but for a folder that was named.
    ours = stack is not None or options.data is not None or settings.redis_url is None
    told = settings.inherited
    environ = {**told, **(folders if ours else {}), **(stack or {})}
    if isinstance(told, Environment):
        environ = Environment(environ, told.file, told.sources)
    try:
        # What `foldin up` itself reads.
        load(StackOptions, (), environ)
        trainer = TrainerSettings.load((), environ)
        key = api_key_of(options.key, options.key_file)
    except SettingsError as exc:
        return None, [Finding("settings", "fail", why, "mend it") for why in exc.problems]
    own = running_stack_url(data)
    api = find_api(options.url or own, None, settings)
    # `foldin up` has made it for who runs the stack, as the doctor's patient does. It opens that stack, so no
    # other address is shown it.
    if key is None and api == own and (data / KEY_FILE).is_file():
        key = _read_key(data / KEY_FILE)
    file = environ.get("FOLDIN_CONFIG")
    found = [Finding("settings", "ok", f"{file} and variables" if file else "variables; no foldin.toml")]
    return (
        Place(
            data=data,
            stack=stack is not None,
            wanted=stack is not None or settings.redis_url is not None,
            api=api,
            named=options.url is not None,
            key=key,
            timeout_s=options.timeout_s,
            trainer=replace(trainer, store=replace(trainer.store, timeout_s=options.timeout_s)),
            environ=environ,
        ),
        found,
    )


def _read_key(file: Path) -> str | None:
    try:
        return api_key_of(None, file)
    except SettingsError:  # another user's stack
        return None


async def _look(place: Place) -> list[Finding]:
    found = [
        machine.disk_room(place.data.expanduser().absolute()),
        machine.privacy(place.data.expanduser().absolute()),
        machine.open_files(),
        *machine.ports(_ports(place), runs=place.stack),
    ]
    if place.wanted:
        found += await _look_at_store(place)
    else:
        found.append(await _no_store(place))
    found += await _look_at_service(place)
    return found


async def _no_store(place: Place) -> Finding:
    """Return that no store is known, and how the one of the service that answers is named."""
    none = f"no stack runs on {place.data}"
    if (folder := await _folder_of_stack(place)) is not None:
        found = f"{none}; that of {place.shown} has {folder}"
        return Finding("store", "warn", found, f"foldin doctor --data {shlex.quote(str(folder))}")
    if await _asked(place, AsyncClient.livez) is not None:
        advice = "name the folder of its stack by --data, or its store in FOLDIN_REDIS_URL"
        return Finding("store", "warn", f"{none}, and a service answers at {place.shown}", advice)
    return Finding("store", "warn", f"{none}, and FOLDIN_REDIS_URL is not set", _START)


async def _folder_of_stack(place: Place) -> Path | None:
    """Return the folder of the stack whose service answers; None where it does not tell."""
    told = await _asked(place, AsyncClient.settings)
    caches = [] if told is None else [each.value for each in told.settings if each.name == "FOLDIN_CACHE_DIR"]
    # Anyone may answer there: the folder is this user's own, and says that its stack does.
    with suppress(OSError, ValueError):
        for folder in (Path(cache).parent for cache in caches):
            if folder.stat().st_uid == os.getuid() and running_stack_url(folder) == place.api:
                return folder
    return None


async def _asked(place: Place, call: Callable[[AsyncClient], Awaitable[_T]]) -> _T | None:
    """Return what the service answers to a call; None for anything that is not that."""
    try:
        async with asyncio.timeout(place.timeout_s), api_client(place.api, place.key) as client:
            return await call(client)
    except (FoldinError, TimeoutError, CannotStartError):
        return None


def _ports(place: Place) -> dict[str, tuple[str, int, str]]:
    """Return the ports of a stack by what they are for."""
    names = (
        ("service", "FOLDIN_PORT", 8080, "/livez"),
        ("environment", "FOLDIN_ENVIRONMENT_PORT", 8081, "/"),
    )
    found = {}
    for what, variable, default, path in names:
        text = place.environ.get(variable) or ""
        found[what] = (LOOPBACK, int(text) if text.isdigit() and 0 < int(text) < 65_536 else default, path)
    if place.stack:
        # Where they are, not where they would be.
        with suppress(OSError, ValueError, KeyError, TypeError):
            content = json.loads((place.data / "stack.json").read_text("utf-8"))
            for what, name in (("service", "url"), ("environment", "environment_url")):
                parts = urlsplit(content[name])
                found[what] = (parts.hostname or LOOPBACK, parts.port or found[what][1], found[what][2])
    return found


async def _look_at_store(place: Place) -> list[Finding]:
    settings = place.trainer.store
    shown = redacted(settings.url)
    try:
        async with asyncio.timeout(3 * place.timeout_s), looking(settings) as client:
            return await _ask_store(client, settings, place, shown)
    except (StoreError, TimeoutError) as exc:
        why = " ".join(str(exc).split()) or "no answer in time"
        return [Finding("store", "fail", f"{shown} does not answer: {why}", f"start it, or {_START}")]
    except (CannotStartError, ValueError, OSError) as exc:
        return [Finding("store", "fail", f"{shown}: {exc}", "mend FOLDIN_REDIS_URL or its password file")]


async def _ask_store(client: Client, settings: StoreSettings, place: Place, shown: str) -> list[Finding]:
    keys = keys_of(settings)
    began = time.time()
    seconds, micros = await client.time()
    ended = time.time()
    # One of each server.
    infos = [info for (info,) in await client.each(["INFO"])]
    # Bytes, as nothing else was asked for.
    config = cast("dict[bytes, bytes]", await client.hgetall(keys.config))
    sync = await _sync(client)
    # The memory of this machine says something of a store that is on it.
    here = place.stack or settings.url.startswith("unix:")
    identity = config.get(b"identity", b"").decode("ascii", "replace")
    found = [
        worst_of(store.version(info, shown, in_cluster=settings.is_cluster) for info in infos),
        worst_of(store.persistence(info, sync, settings.durability) for info in infos),
        worst_of(store.memory_room(info, machine.available_bytes() if here else None) for info in infos),
        store.clock("clock of the store", seconds + micros / 1e6 - (began + ended) / 2, (ended - began) / 2),
        store.namespace(config, settings),
        await asyncio.to_thread(store.archive, place.trainer.archive_folder, identity),
    ]
    return [*found, *await _trainer(client, keys, place, known=bool(config))]


async def _sync(client: Client) -> str | None:
    """Return the store's `appendfsync`, None where it does not tell this user."""
    try:
        return str((await client.config_get("appendfsync")).get("appendfsync"))
    except StoreError:
        return None


async def _trainer(client: Client, keys: Keys, place: Place, *, known: bool) -> list[Finding]:
    # The lease is in the store: a trainer on any machine is seen by it.
    found = []
    if await Leases(keys, client).held():
        found.append(Finding("trainer", "ok", "one leads in this namespace"))
    elif place.stack or known:
        advice = "look at logs/trainer.log of the stack"
        if not place.stack:
            advice = f"start one: python -m {module_name('trainer')}"
        found.append(
            Finding("trainer", "fail", "none leads: ratings are taken, and nothing is learned", advice)
        )
    else:
        found.append(Finding("trainer", "warn", "none leads, in a namespace that is new", _START))
    if (address := place.trainer.address) is not None:
        alive = await asyncio.to_thread(http_ok, address.host, address.port, "/livez")
        told = f"{address}/livez " + ("answers" if alive else "does not answer")
        advice = "" if alive else "see that it runs on this machine, with this FOLDIN_TRAINER_ADDRESS"
        found.append(Finding("trainer's metrics", "ok" if alive else "warn", told, advice))
    return found


async def _look_at_service(place: Place) -> list[Finding]:
    # Where nothing was said to run, nothing that is missing is a fault.
    absent: Status = "fail" if place.stack or place.named else "warn"
    heads: list[httpx.Headers] = []

    async def keep(answer: httpx.Response) -> None:
        heads.append(answer.headers)

    http = httpx.AsyncClient(event_hooks={"response": [keep]}, trust_env=not is_here(place.api))
    try:
        async with asyncio.timeout(2 * place.timeout_s), http:
            client = AsyncClient(place.api, place.key, timeout_s=place.timeout_s, attempts=1, http=http)
            began = time.time()
            ready = await client.readyz()
            ended = time.time()
            found = [_service(place.shown, ready)]
            if told := heads[0].get("Date"):
                # It has whole seconds.
                ahead = parsedate_to_datetime(told).timestamp() + 0.5 - (began + ended) / 2
                found.append(store.clock("clock of the service", ahead, (ended - began) / 2 + 0.5))
            # Last: it may want a key, and all else was found without.
            return [*found, await _figures(client)]
    except BusyError as exc:
        advice = "wait for the first generation, or look at the trainer and the store"
        return [Finding("service", "fail", f"{place.shown} is not ready ({told_problem(exc)})", advice)]
    except (NoAnswerError, TimeoutError) as exc:
        why = " ".join(str(exc).split()) or "no answer in time"
        advice = f"{_START}, or name it by --url"
        return [Finding("service", absent, f"{place.shown} does not answer ({why})", advice)]
    except (FoldinError, ValueError):
        found_there = f"what answers at {place.shown} is no Foldin API, or one of another version"
        return [Finding("service", "fail", found_there, "give another --url")]


def _service(url: str, ready: Ready) -> Finding:
    if ready.degraded:
        return Finding(
            "service", "fail", f"{url} answers from copies: its store is away", "look at the store"
        )
    return Finding("service", "ok", f"{url} is ready, generation {ready.generation}")


async def _figures(client: AsyncClient) -> Finding:
    """Return what the service knows; it may want a key for that."""
    try:
        told = await client.status()
    except ProblemError as exc:
        why = told_problem(exc)
        return Finding("figures", "warn", f"GET /status answers {why}", "give a key that may read")
    found = f"{told.ratings:,} ratings of {told.users:,} users, {told.items:,} items"
    lag = "" if told.stream_lag is None else f"; {told.stream_lag:,} wait for the trainer"
    return Finding("figures", "ok", found + lag)


def _print(findings: list[Finding]) -> None:
    console = Console(highlight=False, soft_wrap=True)
    width = max((len(each.name) for each in findings), default=0)
    for each in findings:
        console.print(
            Text.assemble(
                (f"{each.status:<4}", _COLOURS[each.status]), f"  {each.name:<{width}}  {each.found}"
            )
        )
        if each.advice:
            console.print(Text(f"{'':<{width + 6}}  -> {each.advice}"))
