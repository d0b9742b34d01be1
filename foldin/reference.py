"""The references of all settings, docs/settings.md, and of all commands, docs/cli.md: the declarations of
every process in one document each.
"""

from collections.abc import Iterator
from typing import Any

from environment.settings import ServerSettings
from evaluation.course.settings import EvaluationSettings, PlaySettings
from featurestore.settings import StoreSettings
from foldin.evaluating import EvaluateOptions
from foldin.keys import AddOptions, EnsureOptions, ListOptions, RemoveOptions
from foldin.settings import (
    AskOptions,
    BackupOptions,
    CommonOptions,
    DoctorOptions,
    ExampleOptions,
    ExportOptions,
    ForgetOptions,
    FrontDoorSettings,
    ImportOptions,
    NoOptions,
    RecommendOptions,
    RestoreOptions,
    StackOptions,
    UndoOptions,
    VerifyOptions,
)
from foldin.sizing.run import SizeOptions
from processes.configuration import KEYS, SECRETS
from processes.settings import HIDDEN, declarations, reference
from service.settings import ServiceSettings
from trainer.settings import TrainerSettings

INTRODUCTION = """\
# Settings

Printed by `foldin settings`. A flag wins over an environment variable, a variable over `foldin.toml`, the
file over the default. Each process reads its settings once, at its start, and reports all mistakes together:
one line, exit code 2.

The variables that only the compose file reads are in [operations.md](operations.md).
"""
FILE = """\

## `foldin.toml`

One file for all roles: the `foldin` command and what `foldin up` starts, `python -m service`, `trainer` and
`environment`. It is the one that `--config` names, else the one in `FOLDIN_CONFIG`, else `foldin.toml` in the
folder where the process starts, if there is one. It sets what variables and flags of these roles set, each in
one place; paths are relative to that folder, as in a variable. A key that is none of these is refused, with
the nearest one.

```toml
log_level = "INFO"

[store]
redis_url = "redis://foldin@store.example:6379"
redis_password_file = "/run/secrets/redis"

[service]
port = 8000
hosts = ["foldin.example.com"]

[trainer]
refit_seconds = 120

[up]
data = "/srv/foldin"
```

| section | keys |
|---|---|
"""

# The store's settings once, although two processes read them.
PROCESSES: tuple[tuple[str, type[Any], tuple[str, ...]], ...] = (
    ("Every command of `foldin`; `--config` every process", CommonOptions, ()),
    ("The store, as service and trainer open it", StoreSettings, ()),
    ("`python -m service`", ServiceSettings, ("store",)),
    ("`python -m trainer`", TrainerSettings, ("store",)),
    ("`python -m environment`", ServerSettings, ()),
    ("`python -m evaluation.course.play`", PlaySettings, ()),
    ("`foldin evaluate`, the course's protocol", EvaluationSettings, ()),
    ("`foldin evaluate FILE`", EvaluateOptions, ()),
    ("`foldin up`", StackOptions, ()),
    ("`foldin import FILE`", ImportOptions, ()),
    ("`foldin export WHAT`", ExportOptions, ()),
    ("`foldin backup DIR`", BackupOptions, ()),
    ("`foldin restore SOURCE`", RestoreOptions, ()),
    ("`foldin undo NAME`", UndoOptions, ()),
    ("`foldin verify`", VerifyOptions, ()),
    ("`foldin doctor`", DoctorOptions, ()),
    ("`foldin size`", SizeOptions, ()),
    ("`foldin client-example LANGUAGE`", ExampleOptions, ()),
    ("`foldin status`, `train`, `recommend`, `forget`", AskOptions, ()),
    ("`foldin recommend USER`", RecommendOptions, ("service",)),
    ("`foldin forget USER`", ForgetOptions, ("service",)),
    ("`foldin keys`, each command", ListOptions, ()),
    ("`foldin keys add NAME`", AddOptions, ("where",)),
    ("`foldin keys ensure NAME`", EnsureOptions, ("where",)),
    ("`foldin keys remove NAME`", RemoveOptions, ("where",)),
)


def settings_reference() -> str:
    """Every setting of every process as a Markdown document, from the declarations."""
    tables = (f"\n## {title}\n\n{reference(cls, without=left_out)}" for title, cls, left_out in PROCESSES)
    return INTRODUCTION + FILE + "".join(_sections()) + "".join(tables)


def _sections() -> Iterator[str]:
    for section, keys in KEYS.items():
        named = ", ".join(f"`{key}`" for key in keys)
        yield f"| {f'`[{section}]`' if section else 'none'} | {named} |\n"
    files = " and ".join(f"`{file}` in place of `{secret}`" for secret, file in SECRETS.items())
    yield f"\nA secret does not stand in it, but in a file of its own, which it names: {files}.\n"


def run_settings(_options: NoOptions, settings: FrontDoorSettings) -> int:
    """Print the reference; return the exit code."""
    if not settings.json:
        print(settings_reference(), end="")
    homes = {
        name: f"{section}.{key}".lstrip(".") for section, keys in KEYS.items() for key, name in keys.items()
    }
    found = [
        {
            "process": title.replace("`", ""),
            "variable": declared.variable,
            "flag": declared.flag,
            "default": declared.shown.replace("`", ""),
            "help": declared.help,
            "file": homes.get(declared.variable or ""),
        }
        for title, cls, left_out in PROCESSES
        for _, declared in declarations(cls, frozenset(left_out))
        if declared.help != HIDDEN
    ]
    settings.emit({"settings": found})
    return 0
