"""Commands that documents show, held against what takes them, without running any: the flags of Foldin's own
programs against their loader, paths against the API, targets against the Makefile.
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
from processes.settings import declarations, left_over, load
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
# They are no programs of Foldin's.
SYSTEM = {"base64", "docker", "kubectl", "pip", "pytest", "sudo", "unzip"}
# What reads variables that are no setting of a process.
DEPLOYED = ("docker-compose.yml", "deploy/kubernetes/apply.sh")


class WrongCommandError(AssertionError):
    """The command is not what anything takes."""


def lines(block: str) -> Iterator[str]:
    """The commands of a block: without prompts, remarks, and the ends of lines that go on."""
    for line in re.sub(r"\\\n", " ", block).splitlines():
        if line.strip() and not line.startswith("#"):
            yield line.removeprefix("$ ")


def check(line: str) -> None:
    """Hold one line against what takes it. Raises WrongCommandError, or what a loader raises."""
    words = shlex.split(line, comments=True)
    while words:
        ends = [k for k, word in enumerate(words) if word in {"|", "&&", ";"}]
        end = ends[0] if ends else len(words)
        _check(words[:end])
        words = words[end + 1 :]


def _check(words: list[str]) -> None:
    variables = {}
    while words and re.match(r"[A-Z_]+=", words[0]):
        name, _, value = words.pop(0).partition("=")
        variables[name] = value
    _check_variables(variables, alone=not words)
    if not words:
        return
    program, rest = words[0].removeprefix(".venv/bin/"), words[1:]
    if program in SYSTEM:
        return
    if program not in CHECKS:
        _need((house.ROOT / program).is_file(), f"nothing here takes {program!r}")
        return
    CHECKS[program](rest)


def _need(holds: object, wrong: str) -> None:
    if not holds:
        raise WrongCommandError(wrong)


def _check_variables(variables: dict[str, str], *, alone: bool) -> None:
    known = {each.variable for cls in MODULES.values() for _, each in declarations(cls)}
    for name, value in variables.items():
        tests = name.startswith("FOLDIN_TEST_")
        files = house.ROOT.glob("tests/**/*.py") if tests else map(house.ROOT.joinpath, DEPLOYED)
        is_read = any(re.search(rf"\b{name}\b", path.read_text("utf-8")) for path in files)
        _need(name in known or is_read, f"nothing reads {name}")
        if alone and name in known:
            load(ServiceSettings, ["--port", "1"], {name: value})


def foldin(words: list[str]) -> None:
    """Hold the words behind `foldin` against the loader of its flags."""
    call = find(words, {})
    if call is None:
        raise WrongCommandError(f"foldin has no command {' '.join(words)}")
    if call.command is BENCH:
        # Each benchmark has options of its own.
        name = next(iter(call.arguments), "all")
        _need(
            name.startswith("-") or name in benchmarks_in(house.ROOT / "benchmarks"), f"no benchmark {name}"
        )
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
    """Hold `python -m MODULE FLAGS` against the settings of that process."""
    _need(words[:1] == ["-m"], "python runs a module")
    if words[1] in MODULES:
        load(MODULES[words[1]], words[2:], {})
    else:
        path = house.ROOT / Path(*words[1].split("."))
        _need(path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), f"no module {words[1]}")
        _need(len(words) == 2, f"it is not known which flags {words[1]} takes")


def curl(words: list[str]) -> None:
    """Hold a call against the routes of the service."""
    told = example(["curl", *words], "")
    path = "/" + told.path.partition("?")[0]
    known = [each for each in ROUTES if re.fullmatch(re.sub(r"\{[^}]*\}", "[^/]+", each.path), path)]
    _need(told.method in {each.method for each in known}, f"no call {told.method} {path}")


def make(words: list[str]) -> None:
    """Hold targets against the Makefile."""
    targets = re.findall(r"^([a-z-]+):", (house.ROOT / "Makefile").read_text("utf-8"), re.M)
    for word in words:
        _need("=" in word or word in targets, f"make has no target {word}")


CHECKS: dict[str, Callable[[list[str]], None]] = {
    "curl": curl,
    "foldin": foldin,
    "make": make,
    "python": python,
}
