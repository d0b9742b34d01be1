"""Lays `foldin.toml`, one file with the settings of all roles, below the variables of the environment.

Invariant: a key that no role knows is refused with the nearest one, in whatever section, and so is a secret;
all mistakes are reported together. A flag wins over a variable, a variable over the file. What the file may
have stands here as data, so that no role loads the others; a test holds it to the declarations.
"""

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from processes.settings import Environment, SettingsError

VARIABLE = "FOLDIN_CONFIG"
DEFAULT = "foldin.toml"
# Of an address: a password between its user and its host.
_PASSWORD = re.compile(r"://[^/?#@]*:[^/?#@]+@")

# By section and key, the variable that is set. A key is the name of the variable without `FOLDIN_`, and
# without that of its section. Several roles may read one variable; it stands in one place.
VARIABLES: dict[str, dict[str, str]] = {
    "": {
        "log_level": "FOLDIN_LOG_LEVEL",
        "log_format": "FOLDIN_LOG_FORMAT",
        "traces_url": "FOLDIN_TRACES_URL",
    },
    "store": {
        "redis_url": "FOLDIN_REDIS_URL",
        "redis_password_file": "FOLDIN_REDIS_PASSWORD_FILE",
        "namespace": "FOLDIN_NAMESPACE",
        "partitions": "FOLDIN_PARTITIONS",
        "scale": "FOLDIN_SCALE",
        "timeout_s": "FOLDIN_STORE_TIMEOUT_S",
        "stream_limit": "FOLDIN_STREAM_LIMIT",
        "durability": "FOLDIN_DURABILITY",
        "max_items": "FOLDIN_MAX_ITEMS",
    },
    "service": {
        "host": "FOLDIN_HOST",
        "port": "FOLDIN_PORT",
        "workers": "FOLDIN_WORKERS",
        "cache_dir": "FOLDIN_CACHE_DIR",
        "access": "FOLDIN_ACCESS",
        "hosts": "FOLDIN_HOSTS",
        "origins": "FOLDIN_ORIGINS",
        "proxies": "FOLDIN_PROXIES",
        "tls_cert": "FOLDIN_TLS_CERT",
        "tls_key": "FOLDIN_TLS_KEY",
    },
    "trainer": {
        "archive_dir": "FOLDIN_ARCHIVE_DIR",
        "linger_s": "FOLDIN_LINGER_S",
        "store_dir": "FOLDIN_STORE_DIR",
        "engine": "FOLDIN_ENGINE",
        "refit_events": "FOLDIN_REFIT_EVENTS",
        "refit_seconds": "FOLDIN_REFIT_SECONDS",
        "refit_growth": "FOLDIN_REFIT_GROWTH",
        "refit_share": "FOLDIN_REFIT_SHARE",
        "fit_threads": "FOLDIN_FIT_THREADS",
        "trash_days": "FOLDIN_TRASH_DAYS",
        "trash_bytes": "FOLDIN_TRASH_BYTES",
        "address": "FOLDIN_TRAINER_ADDRESS",
    },
    "environment": {
        "host": "FOLDIN_ENVIRONMENT_HOST",
        "port": "FOLDIN_ENVIRONMENT_PORT",
        "seed": "FOLDIN_ENVIRONMENT_SEED",
    },
    "up": {"play_steps": "FOLDIN_PLAY_STEPS"},
    "client": {"api_key_file": "FOLDIN_API_KEY_FILE"},
}
# By section, keys of settings that have a flag of that name and no variable.
FLAGS: dict[str, tuple[str, ...]] = {
    "environment": (
        *("max_tokens", "users", "items", "known", "late_users", "late_items", "drift", "noise"),
        "variables",
    ),
    # Not --adopt: what is said once, by a person who has looked, must not happen at each start.
    "up": ("data", "cluster", "play", "no_play"),
}
# These take a list.
MANY = {"FOLDIN_HOSTS", "FOLDIN_ORIGINS", "FOLDIN_PROXIES"}
# What others must not read stands in a file of its own, which this key names.
SECRETS = {"api_key": "api_key_file", "redis_password": "redis_password_file"}
# By section and key: the variable that is set, or the place of a setting that has none.
KEYS: dict[str, dict[str, str]] = {
    section: {**names, **{key: f"{section}.{key}" for key in FLAGS.get(section, ())}}
    for section, names in VARIABLES.items()
}


def configured(
    argv: Sequence[str], environ: Mapping[str, str], folder: Path = Path()
) -> tuple[list[str], Environment]:
    """Return the arguments without `--config FILE`, and the variables with those of the file below them: the
    file of the flag, else of `FOLDIN_CONFIG`, else `foldin.toml` in `folder` where there is one.

    Raises SettingsError with every mistake of the file.
    """
    rest, named = _without_flag(argv)
    named = named or environ.get(VARIABLE) or None
    path = Path(named) if named is not None else folder / DEFAULT
    if named is None and not path.exists():
        return rest, Environment(environ)
    return rest, layered(environ, path.absolute())


def layered(environ: Mapping[str, str], path: Path) -> Environment:
    """Return the variables with those of the file below them. Raises SettingsError."""
    values, sources = _read(path)
    # An empty variable is none, as everywhere.
    told = {name: text for name, text in environ.items() if text or name not in values}
    variables = {name: text for name, text in values.items() if "." not in name}
    # By its whole path: children find it wherever they start.
    return Environment({**variables, **told, VARIABLE: str(path)}, values, sources)


def _without_flag(argv: Sequence[str]) -> tuple[list[str], str | None]:
    rest, named, words = [], None, iter(argv)
    for word in words:
        if word == "--config":
            named = next(words, "")
        elif word.startswith("--config="):
            named = word.partition("=")[2]
        else:
            rest.append(word)
            continue
        if not named or named.startswith("--"):
            raise SettingsError("--config needs the path of a file")
    return rest, named


def _read(path: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Return texts, and where they stand, by variable or place. Raises SettingsError."""
    try:
        content = tomllib.loads(path.read_bytes().decode())
    except OSError as exc:
        raise SettingsError(f"{path} cannot be read ({exc.strerror}): name another by --config") from exc
    except (ValueError, RecursionError) as exc:  # UnicodeDecodeError and TOMLDecodeError are of the former
        raise SettingsError(f"{path} is no TOML: {exc}") from exc
    values, sources, problems = dict[str, str](), dict[str, str](), list[str]()
    for section, key, value in _entries(content, problems):
        name = KEYS[section].get(key)
        if name is None:
            problems.append(_unknown(section, key))
            continue
        try:
            values[name] = _text(name, value)
            sources[name] = f"{path.name}: {place(section, key)}"
        except ValueError as exc:
            problems.append(f"{place(section, key)} {exc}")
    if problems:
        raise SettingsError(*(f"{path}: {problem}" for problem in problems))
    return values, sources


def _entries(content: Mapping[str, Any], problems: list[str]) -> Iterator[tuple[str, str, Any]]:
    """Yield section, key and value of each entry; add what is no section to `problems`."""
    for name, value in content.items():
        if not isinstance(value, dict):
            yield "", name, value
        elif name in KEYS and name:
            yield from ((name, key, inner) for key, inner in value.items())
        else:
            sections = [section for section in KEYS if section]
            near = get_close_matches(name, sections, n=1)
            advice = f"did you mean [{near[0]}]?" if near else f"there are [{'], ['.join(sections)}]"
            problems.append(f"[{name}] is no section: {advice}")


def _unknown(section: str, key: str) -> str:
    where = place(section, key)
    if key in SECRETS:
        return f"{where} is a secret: put it in a file of its own, and name that by {SECRETS[key]}"
    homes = [other for other in KEYS if key in KEYS[other]]
    if homes:
        return f"{where} is no setting: did you mean {place(homes[0], key)}?"
    # Of this section first: a key that is written wrong mostly stands in its place.
    if near := get_close_matches(key, KEYS[section], n=1):
        return f"{where} is no setting: did you mean {place(section, near[0])}?"
    every = {other: home for home, keys in KEYS.items() for other in keys}
    if near := get_close_matches(key, every, n=1):
        return f"{where} is no setting: did you mean {place(every[near[0]], near[0])}?"
    return f"{where} is no setting: there are {', '.join(KEYS[section])}"


def _text(name: str, value: Any) -> str:
    """Return a value as a variable would have it. Raises ValueError."""
    if isinstance(value, list) and name in MANY:
        return " ".join(_text("", each) for each in value)
    if isinstance(value, bool):
        # Not 1 and 0, which numbers would take.
        return "true" if value else "false"
    if not isinstance(value, str | int | float):
        raise ValueError(
            "must be a text, a number, or true or false" + (", or a list" if name in MANY else "")
        )
    text = str(value)
    if "\0" in text:
        raise ValueError("must not have a zero byte")
    if name == "FOLDIN_REDIS_URL" and _PASSWORD.search(text):
        raise ValueError("must not have a password: put that in a file, and name it by redis_password_file")
    return text


def place(section: str, key: str) -> str:
    """Return how messages name a key of the file."""
    return f"[{section}] {key}" if section else key
