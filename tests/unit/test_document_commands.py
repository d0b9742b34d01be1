"""Commands that documents show, held against what takes them, without running any: the flags of Foldin's own
programs against their loader, variables against the settings, paths against the API, targets against the
Makefile.
"""

import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from environment.settings import ServerSettings
from evaluation.course.settings import EvaluationSettings, PlaySettings
from foldin.commands.bench import benchmarks_in
from foldin.commands.running import find
from foldin.commands.table import BENCH, EVALUATE, TORTURE, loaded
from foldin.evaluating import EvaluateOptions
from processes.settings import SettingsError, declarations, left_over, load
from service.routes import ROUTES
from service.settings import ServiceSettings
from tests.support import house
from tests.support.examples import example
from torture.campaign import TortureOptions
from trainer.settings import TrainerSettings

MODULES: dict[str, type[Any]] = {
    "environment": ServerSettings,
    "evaluation.course.play": PlaySettings,
    "service": ServiceSettings,
    "trainer": TrainerSettings,
}
# What reads variables that are no setting of a process.
DEPLOYED = ("docker-compose.yml", "deploy/kubernetes/apply.sh")
# What else stands in a block without a language: formulas, what programs print.
COMMAND = re.compile(r"(FOLDIN_\w+=\S+ ?)*((\.venv/bin/)?(curl|foldin|make|python) |$)")
# Printed from the declarations, and compared with them: tests/unit/test_docs_settings.py.
PRINTED = {"cli.md", "settings.md"}


class WrongCommandError(AssertionError):
    """The command is not what anything takes."""


def need(holds: object, wrong: str) -> None:
    if not holds:
        raise WrongCommandError(wrong)


def commands(text: str) -> Iterator[str]:
    """The lines of commands in the fenced blocks of a document."""
    for block in re.findall(r"^```(?:console|sh)?\n(.*?)^```$", text, re.M | re.DOTALL):
        is_prompted = block.startswith("$ ")
        for line in re.sub(r"\\\n", " ", block).splitlines():
            if line.startswith("$ ") == is_prompted and COMMAND.match(line.removeprefix("$ ")):
                yield line.removeprefix("$ ")


def check(line: str) -> None:
    """Hold one line against what takes it. Raises WrongCommandError, or what a loader raises."""
    words = shlex.split(line, comments=True)
    while words:
        end = next((k for k, word in enumerate(words) if word in {"|", "&&", ";"}), len(words))
        command, words = words[:end], words[end + 1 :]
        while command and re.match(r"FOLDIN_[A-Z_]+=", command[0]):
            check_variable(*command.pop(0).split("=", 1))
        program = command[0].removeprefix(".venv/bin/") if command else ""
        CHECKS.get(program, lambda _: None)(command[1:])


def check_variable(name: str, value: str) -> None:
    if name in {each.variable for cls in MODULES.values() for _, each in declarations(cls)}:
        load(ServiceSettings, ["--port", "1"], {name: value})
        return
    tests = name.startswith("FOLDIN_TEST_")
    files = house.ROOT.glob("tests/**/*.py") if tests else map(house.ROOT.joinpath, DEPLOYED)
    need(any(re.search(rf"\b{name}\b", path.read_text("utf-8")) for path in files), f"nothing reads {name}")


def foldin(words: list[str]) -> None:
    call = find(words, {})
    if call is None:
        raise WrongCommandError(f"foldin has no command {' '.join(words)}")
    if call.command is BENCH:
        # Each benchmark has options of its own.
        name = next(iter(call.arguments), "-")
        need(name.startswith("-") or name in benchmarks_in(house.ROOT / "benchmarks"), f"no benchmark {name}")
    elif call.command is TORTURE:
        load(TortureOptions, call.arguments, {})
    elif call.command is EVALUATE:
        of_file, of_course = (
            left_over(each, call.arguments) for each in (EvaluateOptions, EvaluationSettings)
        )
        names = [each for each in of_file if not each.startswith("-")]
        load(EvaluateOptions if names and of_course else EvaluationSettings, call.arguments, {})
    else:
        load(loaded(call.command.options), call.arguments, {})


def python(words: list[str]) -> None:
    if words[:1] == ["-m"] and words[1] in MODULES:
        load(MODULES[words[1]], words[2:], {})
    elif words[:1] == ["-m"]:
        path = house.ROOT / Path(*words[1].split("."))
        need(path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), f"no module {words[1]}")


def curl(words: list[str]) -> None:
    told = example(["curl", *words], "")
    path = "/" + told.path.partition("?")[0]
    known = [each for each in ROUTES if re.fullmatch(re.sub(r"\{[^}]*\}", "[^/]+", each.path), path)]
    need(told.method in {each.method for each in known}, f"no call {told.method} {path}")


def make(words: list[str]) -> None:
    targets = re.findall(r"^([a-z-]+):", (house.ROOT / "Makefile").read_text("utf-8"), re.M)
    for word in words:
        need("=" in word or word in targets, f"make has no target {word}")


CHECKS: dict[str, Callable[[list[str]], None]] = {
    "curl": curl,
    "foldin": foldin,
    "make": make,
    "python": python,
}


def test_every_command_is_taken() -> None:
    found = []
    paths = [house.ROOT / "README.md", house.ROOT / "CONTRIBUTING.md", *house.ROOT.glob("docs/*.md")]
    for path in (each for each in paths if each.name not in PRINTED):
        for line in commands(path.read_text("utf-8")):
            try:
                check(line)
            except (WrongCommandError, SettingsError) as error:
                found.append(f"{path.name}: {line}: {error}")
    assert not found, "\n".join(found)
