"""Commands that documents show, held against what takes them, without running any: the flags of Foldin's own
programs against their loader, services against the compose files, paths against the API, targets against the
Makefile.
"""

import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

import benchmarks.harness.command as harness
from benchmarks.__main__ import main as run_benchmark
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

# Of `docker compose`: what docker's manual has for it, as far as the documents use it. No docker is needed.
COMPOSE: dict[str, set[str]] = {
    "build": set(),
    "down": set(),
    "exec": set(),
    "logs": {"--follow"},
    "ps": set(),
    "run": {"--rm", "--no-deps", "--entrypoint=", "-v="},
    "up": {"--build", "--detach", "--wait", "--no-build", "--no-deps", "--no-recreate", "--scale="},
}
MODULES: dict[str, type[Any]] = {
    "environment": ServerSettings,
    "evaluation.course.play": PlaySettings,
    "service": ServiceSettings,
    "trainer": TrainerSettings,
}
# They come with the system, and are told nothing of Foldin's.
SYSTEM = {"base64", "pip", "sudo", "unzip"}
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
        _bench(call.arguments)
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


class _ReadError(Exception):
    """The flags are read, and nothing is wrong with them."""


def _bench(words: list[str]) -> None:
    name = words[0] if words and not words[0].startswith("-") else "all"
    _need(name in benchmarks_in(house.ROOT / "benchmarks"), f"no benchmark {name}")

    def only(*given: Any, **named: Any) -> None:
        load(*given, **named)
        raise _ReadError

    # Each benchmark has options of its own, which it reads first of all.
    setattr(harness, "load", only)  # noqa: B010 - mypy would have it exported
    try:
        _need(run_benchmark(words) == 0, f"foldin bench {' '.join(words)} is refused")
    except _ReadError:
        pass
    finally:
        setattr(harness, "load", load)  # noqa: B010


def python(words: list[str]) -> None:
    """Hold `python -m MODULE FLAGS` against the settings of that process."""
    _need(words[:1] == ["-m"], "python runs a module")
    if words[1] in MODULES:
        load(MODULES[words[1]], words[2:], {})
    else:
        path = house.ROOT / Path(*words[1].split("."))
        _need(path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), f"no module {words[1]}")
        _need(len(words) == 2, f"it is not known which flags {words[1]} takes")


def docker(words: list[str]) -> None:
    """Hold `docker compose` against the compose file, and what it runs inside against that."""
    services = yaml.safe_load((house.ROOT / "docker-compose.yml").read_text("utf-8"))["services"]
    if words[0] in {"stop", "rm"}:
        for name in words[1:]:
            _need(re.sub(r"^foldin-|-\d+$", "", name) in services, f"no container {name}")
        return
    _need(words[0] == "compose", f"docker {words[0]} is not known here")
    rest = words[1:]
    if rest[0] == "--profile":
        profiles = {name for each in services.values() for name in each.get("profiles", ())}
        _need(rest[1] in profiles, f"no profile {rest[1]}")
        rest = rest[2:]
    command, rest = rest[0], rest[1:]
    _need(command in COMPOSE, f"docker compose has no command {command}")
    options = {}
    while rest and rest[0].startswith("-"):
        name = rest.pop(0)
        _need({name, f"{name}="} & COMPOSE[command], f"docker compose {command} has no {name}")
        options[name] = rest.pop(0) if f"{name}=" in COMPOSE[command] else ""
    scaled = options.get("--scale", "").partition("=")[0]
    _need(not scaled or scaled in services, f"no service {scaled}")
    inside = rest[1:] if command in {"run", "exec"} else []
    for name in rest[: len(rest) - len(inside)]:
        _need(name in services, f"no service {name}")
    program = options.get("--entrypoint", "") or (inside.pop(0) if inside else "")
    if program == "foldin":
        foldin(inside)
    elif program == "sh":
        # A file that the compose file puts there.
        mounts = [str(each).split(":") for each in services[rest[0]]["volumes"]]
        there = {f"{to}/{name.name}" for of, to, *_ in mounts for name in (house.ROOT / of).glob("*")}
        _need(inside[0] in there, f"no {inside[0]} in {rest[0]}")
    else:
        _need(program in {"", "cat"}, f"it is not known what {program} takes")


def kubectl(words: list[str]) -> None:
    """Hold what is asked for by name against the files for Kubernetes."""
    files = "\n".join(path.read_text("utf-8") for path in (house.ROOT / "deploy/kubernetes").rglob("*.*"))
    _need(words[:3] == ["-n", "foldin", "get"], f"kubectl {' '.join(words[:3])} is not known here")
    _need(re.search(rf"\b{re.escape(words[4])}\b", files), f"no {words[3]} {words[4]}")


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


def pytest(words: list[str]) -> None:
    """Hold paths against the tests."""
    for word in words:
        _need(not word.startswith("tests/") or (house.ROOT / word).exists(), f"no {word}")


CHECKS: dict[str, Callable[[list[str]], None]] = {
    "curl": curl,
    "docker": docker,
    "foldin": foldin,
    "kubectl": kubectl,
    "make": make,
    "pytest": pytest,
    "python": python,
}
