"""`foldin bench`: runs the benchmarks of a checkout, in a process of its own and in the checkout's folder."""

import ast
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from processes.errors import CannotStartError

ROOT = Path(__file__).resolve().parent.parent
FOLDER = "benchmarks"


def summaries(folder: Path) -> dict[str, str]:
    """The benchmarks by name, each with the first line of its docstring: every module that has a `main`."""
    found = {}
    for path in sorted(folder.glob("*.py")):
        tree = ast.parse(path.read_text("utf-8"))
        functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        if "main" in functions and not path.name.startswith("_"):
            found[path.stem] = (ast.get_docstring(tree) or "").partition("\n")[0]
    return found


def bench(arguments: Sequence[str], root: Path = ROOT) -> int:
    """Run the benchmark that the first argument names (without one: all of them) with the arguments after it.

    Returns its exit code. Raises CannotStartError for an unknown name, or outside a checkout.
    """
    found = summaries(root / FOLDER)
    if not found:
        raise CannotStartError(
            "benchmarks come with a checkout of the repository, not with the installed package"
        )
    if arguments and arguments[0] in {"-h", "--help", "--list"}:
        print("usage: foldin bench [NAME [ARGUMENTS]]\n\nWithout a name all of them run. Benchmarks:")
        for name, text in found.items():
            print(f"  {name:<13} {text}")
        return 0
    if arguments and not arguments[0].startswith("-") and arguments[0] not in found:
        raise CannotStartError(f"no benchmark is called {arguments[0]!r}: choose one of {', '.join(found)}")
    command = [sys.executable, "-m", FOLDER, *arguments]
    return subprocess.run(command, cwd=root, check=False).returncode  # noqa: S603 - ours
