"""`foldin keys`: makes, lists and removes the API keys of a namespace.

Invariant: a key is shown once, when it is made, or written to a file that its owner alone may read.
"""

import argparse
import asyncio
import os
import secrets
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from featurestore.access import KEY_NAME, ROLES, count_of, digest_of_secret, is_secret, new_secret
from featurestore.errors import StoreError, StoreRefused
from featurestore.quotas.limits import parse_quotas
from featurestore.settings import StoreSettings
from featurestore.store import Store
from foldin.sinks import DEFAULT_DATA, running_stack
from processes.errors import CannotStartError
from processes.settings import load

NO_STACK = "make sure that the stack or the store runs, and name it by --data or FOLDIN_REDIS_URL"


def build_parser() -> argparse.ArgumentParser:
    """The command line of `foldin keys`."""
    parser = argparse.ArgumentParser(
        prog="foldin keys",
        description="Make, list and remove keys of the API. `read` may ask, `rate` may besides rate and take "
        "ratings back, `operate` may besides train, roll back and forget users. Running services know of a "
        "change within two seconds.",
    )
    commands = parser.add_subparsers(metavar="COMMAND", dest="command", required=True)

    def command(name: str, summary: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=summary, description=summary)
        sub.add_argument(
            "--data",
            type=Path,
            metavar="DIR",
            help="the stack that runs on this directory (default: ./data if one runs there; else the store "
            "in FOLDIN_REDIS_URL)",
        )
        return sub

    add = command("add", "make a key and print it, once")
    ensure = command("ensure", "make the key of a file, unless the store knows it already")
    for sub in (add, ensure):
        sub.add_argument("name", type=_name, help="what the log calls it")
        sub.add_argument("--role", choices=ROLES, required=True, help="what it may do")
    quotas = command("quotas", "set what the keys of this name may take; '' is as the service has it")
    quotas.add_argument("name", help="as it was given to `add`")
    quotas.add_argument("quotas", type=_quotas, help="such as requests=5000/s,items=off")
    add.add_argument("--quotas", type=_quotas, default="", help="the same, from the beginning")
    add.add_argument(
        "--file", type=Path, help="write it to this new file, with mode 0600, and do not print it"
    )
    ensure.add_argument("--file", type=Path, required=True, help="the file that holds it, mode 0600")
    command("list", "print names, roles and dates; keys themselves are not stored")
    remove = command("remove", "let the keys of this name in no longer")
    remove.add_argument("name", help="as it was given to `add`")
    return parser


def keys(arguments: Sequence[str], environ: Mapping[str, str]) -> int:
    """Run the command; return the exit code. Raises CannotStartError."""
    options = build_parser().parse_args(arguments)
    data = options.data or DEFAULT_DATA
    stack = running_stack(data)
    if stack is None and options.data is not None:
        raise CannotStartError(f"no stack runs on {data}: start one with `foldin up --data {data}`")
    settings = load(StoreSettings, (), {**environ, **(stack or {})})
    try:
        asyncio.run(_run(options, settings))
    except StoreRefused as exc:
        raise CannotStartError(" ".join(str(exc).split())) from exc
    except StoreError as exc:
        raise CannotStartError(f"{' '.join(str(exc).split())}: {NO_STACK}") from exc
    return 0


async def _run(options: argparse.Namespace, settings: StoreSettings) -> None:
    store = await Store.open(settings, hot=False)
    try:
        match options.command:
            case "list":
                await _list(store)
            case "remove":
                if not await store.access.remove(options.name):
                    raise CannotStartError(f"no key is called {options.name!r}: see `foldin keys list`")
                print(f"{options.name} is removed; services refuse it within two seconds.")
                if not count_of(await store.access.load()):
                    print(
                        "It was the last one: all calls are refused until another is made.", file=sys.stderr
                    )
            case "quotas":
                if not await store.access.change(options.name, options.quotas):
                    raise CannotStartError(f"no key is called {options.name!r}: see `foldin keys list`")
                print(f"Services know the quotas of {options.name} within two seconds.")
            case "add":
                await _add(store, options)
            case "ensure":
                await ensure_key(store, options.name, options.role, options.file)
                print(f"The key {options.name} ({options.role}) is in {options.file}")
    finally:
        await store.close()


async def _list(store: Store) -> None:
    stored = await store.access.load()
    known = sorted((key for key in stored.values() if key is not None), key=lambda key: key.created)
    for key in known:
        made = time.strftime("%Y-%m-%d %H:%M", time.gmtime(key.created))
        print(f"{key.name:<24} {key.role:<8} {made}  {key.quotas}".rstrip())
    if unreadable := count_of(stored) - len(known):
        print(f"{unreadable} of a newer version of foldin, which this one cannot read", file=sys.stderr)


async def _add(store: Store, options: argparse.Namespace) -> None:
    name, role, file = options.name, options.role, options.file
    if any(key is not None and key.name == name for key in (await store.access.load()).values()):
        raise CannotStartError(f"a key is called {name!r} already: remove it first, or choose another name")
    secret = new_secret()
    # The file first: a key that is let in but was never seen by its owner could not be used by anyone.
    if file is not None:
        write_secret(file, secret)
    await store.access.add(secret, name, role, options.quotas)
    print(secret if file is None else f"The key {name} ({role}) is in {file}")


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


def _quotas(text: str) -> str:
    try:
        parse_quotas(text)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(str(exc)) from None
    # One separator: it is stored so.
    return ",".join(text.replace(",", " ").split())


def _name(text: str) -> str:
    if KEY_NAME.fullmatch(text) is None:
        raise argparse.ArgumentTypeError("must be 1 to 64 letters, digits, dots, dashes or underscores")
    return text
