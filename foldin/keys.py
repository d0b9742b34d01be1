"""`foldin keys`: makes, lists and removes the API keys of a namespace.

Invariant: a key is shown once, when it is made, or written to a file that its owner alone may read.
"""

import asyncio
import os
import secrets
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from featurestore.access import (
    KEY_NAME,
    ROLES,
    Role,
    count_of,
    digest_of_secret,
    is_secret,
    new_secret,
    operating,
)
from featurestore.errors import LastOperateKey, StoreError, StoreRefused
from featurestore.settings import StoreSettings
from featurestore.store import Store
from foldin.address import stack_on
from foldin.settings import FrontDoorSettings
from processes.errors import CannotStartError
from processes.settings import choice, data_path, load, nested, setting

# In the data folder of a stack: there was a key, though its store may have been emptied since.
ASKED_FOR = "keys-asked-for"
NO_STACK = "make sure that the stack or the store runs, and name it by --data or FOLDIN_REDIS_URL"


def _name(text: str) -> str:
    if KEY_NAME.fullmatch(text) is None:
        raise ValueError("must be 1 to 64 letters, digits, dots, dashes or underscores")
    return text


@dataclass(frozen=True, slots=True)
class ListOptions:
    """Options of `foldin keys list`, and of each of the others besides its own."""

    data: Path | None = setting(
        None,
        "the stack that runs on this directory",
        data_path,
        metavar="DIR",
        shown="./data if one runs there; else the store in `FOLDIN_REDIS_URL`",
    )


@dataclass(frozen=True, slots=True)
class AddOptions:
    """Options of `foldin keys add`."""

    name: str = setting(..., "what the log calls it", _name, flag="NAME")
    role: Role = setting(..., "what it may do", choice(ROLES))
    file: Path | None = setting(None, "write it to this new file, with mode 0600, and do not print it", Path)
    where: ListOptions = nested(ListOptions)


@dataclass(frozen=True, slots=True)
class EnsureOptions:
    """Options of `foldin keys ensure`."""

    name: str = setting(..., "what the log calls it", _name, flag="NAME")
    role: Role = setting(..., "what it may do", choice(ROLES))
    file: Path = setting(..., "the file that holds it, mode 0600", Path)
    where: ListOptions = nested(ListOptions)


@dataclass(frozen=True, slots=True)
class RemoveOptions:
    """Options of `foldin keys remove`."""

    name: str = setting(..., "as it was given to `add`", flag="NAME")
    last: bool = setting(False, "even the last one that may operate, while there are others")
    where: ListOptions = nested(ListOptions)


def add_key(options: AddOptions, settings: FrontDoorSettings) -> int:
    """Make a key, and print it or write it to a file; return the exit code. Raises CannotStartError."""

    async def add(store: Store) -> None:
        name, role, file = options.name, options.role, options.file
        known = await store.access.load()
        if any(key is not None and key.name == name for key in known.values()):
            raise CannotStartError(
                f"a key is called {name!r} already: remove it first, or choose another name"
            )
        secret = new_secret()
        # The file first: a key that is let in but was never seen by its owner could not be used by anyone.
        if file is not None:
            write_secret(file, secret)
        await store.access.add(secret, name, role)
        shown = {"key": secret} if file is None else {"file": str(file)}
        settings.emit({"name": name, "role": role, **shown})
        # With `--json` it was printed there, once; the other output may be a log.
        if not settings.json or file is not None:
            print(secret if file is None else f"The key {name} ({role}) is in {file}")
        if not known:
            print(
                "This is the first key: from now on every call of the API needs one, for good.",
                file=sys.stderr,
            )

    return _in_store(options.where, settings, add, asks=True)


def ensure_key_file(options: EnsureOptions, settings: FrontDoorSettings) -> int:
    """Make a file hold a key that the store knows; return the exit code. Raises CannotStartError."""

    async def ensure(store: Store) -> None:
        await ensure_key(store, options.name, options.role, options.file)
        print(f"The key {options.name} ({options.role}) is in {options.file}")
        settings.emit({"name": options.name, "role": options.role, "file": options.file})

    return _in_store(options.where, settings, ensure, asks=True)


def list_keys(options: ListOptions, settings: FrontDoorSettings) -> int:
    """Print the keys by age; return the exit code. Raises CannotStartError."""

    async def show(store: Store) -> None:
        stored = await store.access.load()
        known = sorted((key for key in stored.values() if key is not None), key=lambda key: key.created)
        for key in known:
            made = time.strftime("%Y-%m-%d %H:%M", time.gmtime(key.created))
            print(f"{key.name:<24} {key.role:<8} {made}")
        if unreadable := count_of(stored) - len(known):
            print(f"{unreadable} of a newer version of foldin, which this one cannot read", file=sys.stderr)
        shown = [{"name": key.name, "role": key.role, "created": key.created} for key in known]
        settings.emit({"keys": shown, "unreadable": unreadable})

    return _in_store(options, settings, show)


def remove_key(options: RemoveOptions, settings: FrontDoorSettings) -> int:
    """Let the keys of a name in no longer; return the exit code. Raises CannotStartError."""

    async def remove(store: Store) -> None:
        try:
            removed = await store.access.remove(options.name, operable=not options.last)
        except LastOperateKey as exc:
            raise CannotStartError(
                f"only {options.name!r} may operate, and there are other keys: make another that may, or say "
                "--last"
            ) from exc
        if not removed:
            raise CannotStartError(f"no key is called {options.name!r}: see `foldin keys list`")
        print(f"{options.name} is removed; services refuse it within two seconds.")
        stored = await store.access.load()
        remain = count_of(stored)
        if not remain:
            print("It was the last one: all calls are refused until another is made.", file=sys.stderr)
        elif options.last and not operating(stored):
            print("Of calls that operate all are refused: no key that is left may operate.", file=sys.stderr)
        settings.emit({"name": options.name, "remain": remain})

    return _in_store(options.where, settings, remove)


def _in_store(
    where: ListOptions,
    settings: FrontDoorSettings,
    work: Callable[[Store], Awaitable[None]],
    *,
    asks: bool = False,
) -> int:
    """Do the work in the store of a stack, or of the environment. `asks`: from then on keys are asked for."""
    data, stack = stack_on(where.data, settings)

    async def run() -> None:
        store = await Store.open(load(StoreSettings, (), {**settings.inherited, **(stack or {})}), hot=False)
        try:
            await work(store)
        finally:
            await store.close()

    try:
        asyncio.run(run())
    except StoreRefused as exc:
        raise CannotStartError(" ".join(str(exc).split())) from exc
    except StoreError as exc:
        raise CannotStartError(f"{' '.join(str(exc).split())}: {NO_STACK}") from exc
    if stack is not None and asks:
        (data / ASKED_FOR).touch()
    return 0


async def ensure_key(store: Store, name: str, role: str, file: Path) -> None:
    """Make `file` hold a key that the store knows.

    A store that never had a key takes the one in the file: it is new, or was wiped, and people hold that
    key. In any other store an unknown key was removed, and must not come back: the file gets a new one.
    """
    stored = await store.access.load()
    try:
        secret = (await asyncio.to_thread(file.read_text, "ascii", "replace")).strip()
    except FileNotFoundError:
        secret = new_secret()
        write_secret(file, secret)
        stored = {}
    except OSError as exc:
        raise CannotStartError(f"the key in {file} cannot be read: {exc.strerror}") from exc
    if not is_secret(secret):
        raise CannotStartError(f"{file} holds no key: remove it, and a new key is made")
    if digest_of_secret(secret) not in stored:
        if stored:
            secret = new_secret()
            write_secret(file, secret, replace=True)
        await store.access.add(secret, name, role)  # type: ignore[arg-type]  # one of ROLES, by the parser
        return
    known = stored[digest_of_secret(secret)]
    if known is not None and known.role != role:
        raise CannotStartError(
            f"the key in {file} has the role {known.role}, not {role}: remove it by `foldin keys remove "
            f"{known.name}`, and the file"
        )


def write_secret(file: Path, secret: str, *, replace: bool = False) -> None:
    """Write a file with mode 0600, whole or not at all.

    Raises CannotStartError where there is one and it is not to `replace` it.
    """
    beside = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    try:
        descriptor = os.open(beside, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        try:
            with os.fdopen(descriptor, "w") as opened:
                opened.write(secret + "\n")
            if replace:
                beside.replace(file)
            else:
                # A link, unlike a rename, replaces no file that is there.
                os.link(beside, file)
        finally:
            beside.unlink(missing_ok=True)
    except FileExistsError as exc:
        raise CannotStartError(f"{file} is there already: remove it, or choose another file") from exc
    except OSError as exc:
        raise CannotStartError(f"{file} cannot be written: {exc.strerror}") from exc
