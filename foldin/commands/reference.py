"""`python -m foldin.commands.reference`: all commands, docs/cli.md, from what they declare."""

import sys
from collections.abc import Iterator

from foldin.commands.table import COMMANDS, COURSE, EVALUATE, Command, loaded
from processes.settings import declarations, reference

INTRODUCTION = """\
# The command line

Printed by `python -m foldin.commands.reference`; `foldin COMMAND --help` says the same on a terminal.

- Flags can stand before or after what is given by its place; one that takes several values, behind. What is
  not a flag is a variable, or stands in [`foldin.toml`](settings.md#foldintoml): a flag wins over a variable,
  a variable over the file.
- Every command takes `--config FILE` and `--json`. With `--json` standard output has one JSON document, or
  one a line, and all that is said goes to standard error. What fails prints
  `{"error": ..., "exit_code": ...}`, a name that does not exist, too.
- What lasts shows a bar on standard error, where that is a terminal and `--json` is not given.
- `foldin --install-completion` has the shell that calls it complete commands, flags and their
  values; with `bash`, `zsh`, `fish` or `powershell` behind it, that one.

| exit code | means |
|---|---|
| 0 | done |
| 1 | something failed on the way, or is not as it should be: what to do is said |
| 2 | nothing was begun: a person must change what is named |
| 130 | stopped by Ctrl-C, but for `foldin up`, which ends so with 0 |

| command | does |
|---|---|
"""


def commands_reference() -> str:
    """Return every command with its flags as a Markdown document."""
    rows = "".join(
        f"| [`foldin {each.name}`](#foldin-{each.name}) | {each.summary} |\n" for each in COMMANDS.values()
    )
    return INTRODUCTION + rows + "".join(part for each in COMMANDS.values() for part in _command(each, ""))


def _command(command: Command, group: str) -> Iterator[str]:
    name = f"foldin {group}{command.name}"
    yield f"\n{'###' if group else '##'} {name}\n\n{command.about}\n"
    if not command.commands:
        yield f"\n```\n{name} {_usage(command)}\n```\n"
        yield from _options(command)
        if command is EVALUATE:
            yield f"\n{COURSE.about}\n"
            yield from _options(COURSE)
    if command.prints:
        yield f"\n`--json` prints {command.prints}.\n"
    for inner in command.commands:
        yield from _command(inner, f"{command.name} ")


def _usage(command: Command) -> str:
    if not command.options:
        return command.usage or "[OPTIONS]"
    found = declarations(loaded(command.options))
    return " ".join([*(each.flag or "" for _, each in found if each.positional), "[OPTIONS]"])


def _options(command: Command) -> Iterator[str]:
    cls = loaded(command.options) if command.options else None
    if cls is not None and any(True for _ in declarations(cls)):
        yield f"\n{reference(cls)}"


if __name__ == "__main__":
    sys.stdout.write(commands_reference())
