"""`foldin bench` and `foldin torture` run what a checkout has beside the product, in a process of its own.

Invariant: nothing of it is in the wheel, nor loaded by the product.
"""

import ast
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from foldin.settings import FrontDoorSettings, no_document
from processes.errors import CannotStartError

ROOT = Path(__file__).resolve().parents[2]
FOLDER, TORTURE = "benchmarks", "torture"
# Stands before all other arguments, for the process that runs a benchmark or the torture: no bar on standard
# error.
NO_BAR = "--no-bar"


@dataclass(frozen=True, slots=True)
class Benchmark:
    """The module of a benchmark, and the first line of its docstring."""

    module: str
    about: str


def benchmarks_in(folder: Path) -> dict[str, Benchmark]:
    """Return the benchmarks by name: modules with a `main` in the folder, its `stacks` or `quality`."""
    found = {}
    # Read, not imported: listing must not load numpy and a compiler for each of them.
    paths = [path for part in (".", "stacks", "quality") for path in folder.glob(f"{part}/*.py")]
    for path in sorted(paths, key=lambda path: path.stem):
        tree = ast.parse(path.read_text("utf-8"))
        names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        targets = [node.targets[0] for node in tree.body if isinstance(node, ast.Assign)]
        names |= {target.id for target in targets if isinstance(target, ast.Name)}
        if "main" in names and not path.name.startswith("_"):
            module = ".".join((folder.name, *path.relative_to(folder).with_suffix("").parts))
            found[path.stem] = Benchmark(module, (ast.get_docstring(tree) or "").partition("\n")[0])
    return found


def run_bench(arguments: Sequence[str], settings: FrontDoorSettings | None) -> int:
    """Run `bench`, and emit how it ended; return that. `settings`: None for help. Raises as `bench`."""
    if settings is not None and "--list" in arguments[:1]:
        found = benchmarks_in(ROOT / FOLDER)
        settings.emit({"benchmarks": [{"name": name, "about": each.about} for name, each in found.items()]})
    began = time.monotonic()
    code = bench(arguments, bar=settings is not None and settings.emit is no_document)
    if settings is not None and "--list" not in arguments[:1]:
        name = arguments[0] if arguments and not arguments[0].startswith("-") else "all"
        took_s = round(time.monotonic() - began, 3)
        settings.emit({"benchmark": name, **ended("the benchmark", code), "seconds": took_s})
    return code


def ended(what: str, code: int) -> dict[str, object]:
    """Return how a process ended that said on standard error what is wrong, as `--json` prints it."""
    why = {"error": f"{what} ended with exit code {code}: standard error has why"} if code else {}
    return {**why, "exit_code": code}


def bench(arguments: Sequence[str], *, bar: bool = True) -> int:
    """Run the benchmark that the first argument names (without one: all of them) with the arguments after it.
    `bar`: show on a terminal how far it is.

    Return its exit code. Raises CannotStartError for an unknown name, or outside a checkout.
    """
    found = benchmarks_in(ROOT / FOLDER)
    if not found:
        raise CannotStartError(
            "benchmarks come with a checkout of the repository, not with the installed package"
        )
    if arguments and arguments[0] in {"-h", "--help", "--list"}:
        print("usage: foldin bench [NAME [ARGUMENTS]]\n\nWithout a name all of them run. Benchmarks:")
        for name, benchmark in found.items():
            print(f"  {name:<13} {benchmark.about}")
        return 0
    if arguments and not arguments[0].startswith("-") and arguments[0] not in found:
        raise CannotStartError(f"no benchmark is called {arguments[0]!r}: choose one of {', '.join(found)}")
    command = [sys.executable, "-m", FOLDER, *(() if bar else (NO_BAR,)), *arguments]
    # Not by `processes`, whose children have a process group of their own: this one stands in for the command
    # that the user runs, so Ctrl-C must reach it, and it ends what it has started.
    return subprocess.run(command, cwd=ROOT, check=False).returncode  # noqa: S603 - ours


def run_torture(arguments: Sequence[str], settings: FrontDoorSettings | None) -> int:
    """Run the torture with these arguments, emit how it ended; return its exit code. `settings`: None for
    help. Raises CannotStartError outside a checkout.
    """
    if not (ROOT / TORTURE / "__main__.py").is_file():
        raise CannotStartError("the torture comes with a checkout of the repository, not with the package")
    began = time.monotonic()
    # Not by `processes`, as above. It runs in the folder of its caller, which `--data` is relative to.
    flags = () if settings is None or settings.emit is no_document else (NO_BAR,)
    command = [sys.executable, "-m", TORTURE, *flags, *arguments]
    code = subprocess.run(command, check=False).returncode  # noqa: S603 - ours
    if settings is not None:
        settings.emit({**ended("the torture", code), "seconds": round(time.monotonic() - began, 3)})
    return code
