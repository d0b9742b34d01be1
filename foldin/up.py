"""`foldin up`: the whole stack on this machine, from an empty directory to a player whose error falls.

Store, then trainer, service and environment together, then the player; they end in the opposite order.
Invariant: no part is started before everything that can refuse a start has been tried.
"""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from foldin.preflight import data_directory, locked, reaches_beyond, require_free_port
from foldin.settings import FrontDoorSettings, StackOptions
from foldin.store import EmbeddedStore
from processes import module_name
from processes.child import ChildSpec
from processes.errors import DATA_REFUSED, CannotStartError, StackFailedError
from processes.loop import first_of
from processes.probes import http_ok
from processes.supervisor import Supervisor, describe_end

# What another process must set alike to write to the store of this stack.
STORE_SETTINGS = {
    *{"FOLDIN_REDIS_URL", "FOLDIN_REDIS_PASSWORD_FILE", "FOLDIN_NAMESPACE", "FOLDIN_PARTITIONS"},
    *{"FOLDIN_SCALE", "FOLDIN_STREAM_LIMIT", "FOLDIN_MAX_ITEMS", "FOLDIN_DURABILITY"},
    *{"FOLDIN_STORE_TIMEOUT_S"},
}
# A service that listens on all addresses is asked at the loopback one.
PROBE_HOSTS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - compared with, not listened on
# Seconds on a quiet machine; code that is not compiled yet and busy cores take several times that.
READY_WITHIN_S = 60.0
# A trainer says that it refuses an archive within a second of its start.
DECIDED_S = 10.0
# In the data directory: the first key, where the API asks for one.
KEY_FILE = "operator.key"
# So few that the error of the players that learn while they play is seen to fall.
KNOWN_RATINGS = 1_000
# A step of the player: its thousand take a minute, in which the page shows the error fall.
STEP_MS = 60
# The player and the environment have nothing to save; the service finishes its requests, the trainer its
# batch.
GRACE_S = {"player": 2.0, "environment": 3.0, "service": 8.0, "trainer": 10.0}


def say(text: str) -> None:
    """Print one line at once. A reader that went away does not end the stack."""
    try:
        print(text, flush=True)
    except OSError:
        # Later lines go nowhere, and Python's own flush at exit finds an open file.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def up(options: StackOptions, settings: FrontDoorSettings) -> int:
    """Run the stack until SIGINT or SIGTERM; return 0 then.

    Raises CannotStartError or StackFailedError, with no part left running.
    """
    if settings.inherited.get("FOLDIN_TLS_CERT"):
        raise CannotStartError(
            "this stack speaks plain HTTP: unset FOLDIN_TLS_CERT, or run "
            f"`python -m {module_name('service')}` by itself"
        )
    # What is made from here on, by the parts of the stack too, is for this user alone.
    os.umask(0o077)
    data = data_directory(options.data)
    with locked(data) as lock:
        if not settings.redis_url:
            refuse_cluster(data, settings.inherited.get("FOLDIN_NAMESPACE") or "foldin")
        require_free_port(options.host, options.port, "--port")
        require_free_port(options.host, options.environment_port, "--environment-port")
        return asyncio.run(_run(Stack(options, settings, data), lock))


def refuse_cluster(data: Path, namespace: str) -> None:
    """Raise CannotStartError where the store of a data directory is a cluster of an earlier version."""
    if (data / "store/cluster.json").exists():
        raise CannotStartError(
            f"{data} holds a cluster of an earlier version, not one server: start an empty one by `foldin up "
            f"--no-play --data NEW`, and then `foldin restore {data / 'archive' / namespace} --data NEW`"
        )


async def _run(stack: "Stack", lock: tuple[int, ...]) -> int:
    stop, hurry = asyncio.Event(), asyncio.Event()

    def on_signal() -> None:
        if stop.is_set():
            hurry.set()
        stop.set()

    # SIGHUP: the terminal was closed.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, on_signal)
    supervisor = Supervisor(stack.data / "logs", say, lock)
    running = asyncio.create_task(stack.run(supervisor), name="stack")
    try:
        await first_of(stop.wait(), asyncio.shield(running), asyncio.shield(supervisor.failed))
        for outcome in (running, supervisor.failed):
            if not stop.is_set() and outcome.done():
                await outcome
    finally:
        if stop.is_set():
            say("\nStopping (Ctrl-C again: at once) ...")
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await supervisor.close(hurry)
        stack.forget()
        if sys.stdout.isatty():
            # A player that was ended while it drew leaves the cursor hidden.
            print("\x1b[?25h", end="", flush=True)
    say(f"Stopped. The data is in {stack.data}.")
    stack.tell("stopped")
    return 0


class Stack:
    """One stack: the parts' commands and settings, and the words on the terminal."""

    def __init__(self, options: StackOptions, settings: FrontDoorSettings, data: Path) -> None:
        self.data = data
        self._options = options
        self._settings = settings
        self._file = data / "stack.json"
        self._store: EmbeddedStore | None = None
        # Of a key that may operate, where the API asks for one.
        self._key_file: Path | None = None
        # The trainer leaves an archive that is not the store's, or newer, to a person to decide about.
        self._without_trainer = False
        self._refused: list[tuple[str, str]] = []
        self._holds_ratings, self._checked_at = True, 0.0
        self._probe_host = PROBE_HOSTS.get(options.host, options.host)
        in_url = f"[{self._probe_host}]" if ":" in self._probe_host else self._probe_host
        self.api_url = f"http://{in_url}:{options.port}"
        self.environment_url = f"http://{in_url}:{options.environment_port}"

    async def run(self, supervisor: Supervisor) -> None:
        """Start everything, say where it is, let the player play, and wait until a part fails for good.

        Raises CannotStartError or StackFailedError.
        """
        say(f"Foldin starts; its data is in {self.data}")
        if not self._settings.redis_url:
            await self._start_store(supervisor)
        environment = self._environment()
        holds_ratings, has_key = await self._check_store(supervisor, environment)
        self._holds_ratings, self._checked_at = holds_ratings, time.monotonic()
        if has_key:
            self._key_file = self.data / KEY_FILE
        await supervisor.start(*self._parts(environment))
        self._remember(environment)
        say(self._where())
        self.tell("ready")
        if self._without_trainer:
            pass  # the supervisor has told what to do
        elif holds_ratings and not (self._options.play or self._options.no_play):
            say(
                "The store holds ratings from before, all still known. No player this time "
                "(--play: play beside them)."
            )
        elif not self._options.no_play:
            await self._play(supervisor, environment)
        await asyncio.shield(supervisor.failed)

    async def _start_store(self, supervisor: Supervisor) -> None:
        self._store = EmbeddedStore(self.data / "store", self._settings.inherited)
        await supervisor.start(self._store.spec)

    async def _check_store(self, supervisor: Supervisor, environment: Mapping[str, str]) -> tuple[bool, bool]:
        """Return whether the store holds ratings, and whether the API is asked with a key."""
        lines: list[str] = []
        command = (*_python("foldin.checkstore"), str(self.data / KEY_FILE))
        if not self._settings.open_access and reaches_beyond(self._options.host):
            command = (*command, "needed")
        check = ChildSpec("check", command, environment, show=lines.append)
        code = await supervisor.once(check)
        if code != 0:
            raise StackFailedError(
                f"the store could not be checked ({describe_end(code)}); see {self.data / 'logs/check.log'}"
            )
        if self._settings.redis_url:
            say(f"  store: ready at {redacted(self._settings.redis_url)}")
        return "ratings" in lines, "key" in lines

    def _environment(self) -> dict[str, str]:
        options = self._options
        return {
            **self._settings.inherited,
            # What a part prints must be in its log before it is killed.
            "PYTHONUNBUFFERED": "1",
            # As for the parts themselves, for the processes that they start.
            "PYTHONSAFEPATH": "1",
            "FOLDIN_HOST": options.host,
            "FOLDIN_PORT": str(options.port),
            "FOLDIN_WORKERS": str(options.workers),
            "FOLDIN_CACHE_DIR": str(self.data / "cache"),
            "FOLDIN_ARCHIVE_DIR": str(self.data / "archive"),
            # Its own store is on this disk; of another nothing is known here.
            **(
                {}
                if self._store is None
                else {**self._store.settings, "FOLDIN_STORE_DIR": str(self.data / "store")}
            ),
            "FOLDIN_ENVIRONMENT_HOST": options.host,
            "FOLDIN_ENVIRONMENT_PORT": str(options.environment_port),
        }

    def _parts(self, environment: Mapping[str, str]) -> list[ChildSpec]:
        trainer = (*_python("trainer"), *(("--adopt",) if self._options.adopt else ()))
        answers = partial(http_ok, self._probe_host, self._options.environment_port, "/")
        return [
            # Without a probe: what it does shows in what the service answers.
            ChildSpec(
                "trainer",
                trainer,
                environment,
                grace_s=GRACE_S["trainer"],
                spared=self._goes_on_without_trainer,
                obstacle=self._refused_archive,
            ),
            *(
                ChildSpec(name, _python(name), environment, probe, READY_WITHIN_S, GRACE_S[name])
                for name, probe in (("service", self._service_is_ready), ("environment", answers))
            ),
        ]

    def _goes_on_without_trainer(self, last_line: str) -> bool:
        if DATA_REFUSED not in last_line:
            return False
        if not self._without_trainer:
            self._without_trainer, self._refused = True, self._archive_state()
        return True

    def _refused_archive(self) -> str | None:
        """Return why the trainer is not to be started again: the archive is as it was when it refused it."""
        if self._without_trainer and self._archive_state() == self._refused:
            return "the archive is not this store's"
        self._without_trainer = False
        return None

    def _archive_state(self) -> list[tuple[str, str]]:
        """What a restore or an adoption changes: whose the archive is, and which epochs it has."""
        root = self.data / "archive"
        found = [*root.glob("*/identity.json"), *root.glob("*/epoch-*")]
        # Links are names that trainers give it for a term.
        found = [path for path in found if not path.parent.is_symlink()]
        with contextlib.suppress(FileNotFoundError):
            return sorted((str(path), path.read_text("utf-8") if path.is_file() else "") for path in found)
        return []

    def _is_undecided(self) -> bool:
        """Say whether the trainer is about to refuse the archive: it has ratings, and the store has none."""
        if self._without_trainer or self._options.adopt or self._holds_ratings:
            return False
        archived = any((self.data / "archive").glob("*/epoch-*/*.parquet"))
        # Bounded: the last word is the trainer's.
        return archived and time.monotonic() - self._checked_at < DECIDED_S

    def _service_is_ready(self) -> bool:
        # The prior, which it answers from then, is there a moment before the trainer ends.
        if self._is_undecided():
            return False
        # Without a trainer a store that has nothing gets no first generation.
        path = "/livez" if self._without_trainer else "/readyz"
        return http_ok(self._probe_host, self._options.port, path)

    async def _play(self, supervisor: Supervisor, environment: Mapping[str, str]) -> None:
        say(
            "A player now plays the lecture's environment against the API, beside simpler players.\n"
            f"They are shown {KNOWN_RATINGS:,} ratings first, then each rating that they have predicted:\n"
        )
        addresses = ("--environment", self.environment_url, "--api", self.api_url)
        player = ChildSpec(
            "player",
            (
                *_python("evaluation.course.play"),
                *addresses,
                "--known",
                str(KNOWN_RATINGS),
                "--delay-ms",
                str(STEP_MS),
            ),
            {**environment, **({"FOLDIN_API_KEY_FILE": str(self._key_file)} if self._key_file else {})},
            grace_s=GRACE_S["player"],
            # On a terminal it draws: then only its errors go to its log.
            captured="stderr" if sys.stdout.isatty() else "all",
            show=None if sys.stdout.isatty() else say,
        )
        try:
            code = await supervisor.once(player)
        except CannotStartError as exc:
            say(f"The player could not play: {exc}")
            return
        if code != 0:
            say(f"The player stopped early ({describe_end(code)}); its log: {self.data / 'logs/player.log'}")
            return
        say(self._next())

    def tell(self, event: str) -> None:
        """Say by `--json` what has happened, and where everything is."""
        # Where it cannot be written, as on a disk that is full, the stack goes on.
        with contextlib.suppress(OSError):
            self._settings.emit(
                {
                    "event": event,
                    "api": self.api_url,
                    "environment": self.environment_url,
                    "data": self.data,
                    "logs": self.data / "logs",
                    "key_file": self._key_file,
                    "trainer": not self._without_trainer,
                }
            )

    def _where(self) -> str:
        rows = {
            "API": self.api_url,
            "dashboard": f"{self.api_url}/",
            "documentation": f"{self.api_url}/docs",
            "metrics": f"{self.api_url}/metrics",
            "environment": self.environment_url,
            "logs": str(self.data / "logs"),
        }
        if address := self._settings.inherited.get("FOLDIN_TRAINER_ADDRESS"):
            rows["trainer"] = f"http://{address}/livez, /metrics"
        if self._key_file is not None:
            rows["operator's key"] = f"{self._key_file}: the API asks for a key, see `foldin keys --help`"
        lines = [f"  {name + ':':<16}{value}" for name, value in rows.items()]
        runs = "Everything but the trainer runs" if self._without_trainer else "Everything runs"
        return "\n".join(["", f"{runs}. Ctrl-C stops it.", *lines, ""])

    def _next(self) -> str:
        # From a checkout the command is not on the path.
        key = "" if self._key_file is None else f" -H \"Authorization: Bearer $(cat '{self._key_file}')\""
        key_file = "" if self._key_file is None else f" --key-file {self._key_file}"
        foldin = "foldin" if shutil.which("foldin") else sys.argv[0].removeprefix(f"{Path.cwd()}/")
        return "\n".join(
            [
                "",
                "The stack keeps serving until Ctrl-C. Where to look next:",
                f"  a prediction:     curl '{self.api_url}/predict?user_id=25&item_id=158'{key}",
                f"  recommendations:  curl '{self.api_url}/recommend/25?n=5'{key}",
                f"  what is live:     {self.api_url}/",
                # Among simulated users it would be rated by them, too.
                "  your own data:    apart from the player's; stop this stack, then",
                f"                    {foldin} up --data ./mine --no-play",
                f"                    {foldin} import ratings.csv --data ./mine",
                f"  the whole course: {foldin} evaluate --api {self.api_url}{key_file}",
                "",
            ]
        )

    def _remember(self, environment: Mapping[str, str]) -> None:
        """Write to `stack.json` where this stack is, for `foldin import --data`."""
        store = {name: value for name, value in environment.items() if name in STORE_SETTINGS}
        content = {
            "pid": os.getpid(),
            "url": self.api_url,
            "environment_url": self.environment_url,
            "store": store,
        }
        # Whole or not at all: `foldin import` may look at any moment.
        beside = self._file.with_suffix(".new")
        try:
            beside.unlink(missing_ok=True)
            # Only this user may read it: it carries the store's password.
            beside.touch(mode=0o600)
            beside.write_text(json.dumps(content, indent=2) + "\n", "utf-8")
            beside.replace(self._file)
        except OSError as exc:
            # A full disk ends nothing that runs.
            say(f"{self._file} cannot be written ({exc.strerror}): name this stack to commands by --url")

    def forget(self) -> None:
        """Remove `stack.json` and the store's socket: the stack is gone."""
        if isinstance(self._store, EmbeddedStore):
            self._store.clean()
        with contextlib.suppress(OSError):
            self._file.unlink(missing_ok=True)


def _python(module: str) -> tuple[str, ...]:
    # -P: a folder called `service` in the current directory must not come before ours.
    return (sys.executable, "-P", "-m", module_name(module))


def redacted(url: str) -> str:
    """Return the address without its password."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
