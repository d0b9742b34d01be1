"""`foldin bench`.

Runs the scripts in `benchmarks/` of a checkout, one process each, so that none disturbs another.
"""

import ast
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from foldin.errors import CannotStartError

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks"


def scripts(folder: Path) -> dict[str, Path]:
    """The benchmarks by name: every script that can be run by itself.

    A name with `_` in front is a helper.
    """
    return {path.stem: path for path in sorted(folder.glob("*.py")) if not path.name.startswith("_")}


def summary(path: Path) -> str:
    """The first line of the script's docstring."""
    text = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
    return text.partition("\n")[0]


def bench(arguments: Sequence[str], folder: Path = FOLDER) -> int:
    """Run the benchmark that the first argument names with the arguments after it; without one, list all.

    Returns the exit code of the script. Raises CannotStartError for an unknown name, or outside a checkout.
    """
    found = scripts(folder) if folder.is_dir() else {}
    if not found:
        raise CannotStartError(
            "benchmarks come with a checkout of the repository, not with the installed package"
        )
    if not arguments or arguments[0] in {"-h", "--help"}:
        print("usage: foldin bench NAME [ARGUMENTS]\n\nbenchmarks:")
        for name, path in found.items():
            print(f"  {name:<20} {summary(path)}")
        return 0
    name, *rest = arguments
    if name not in found:
        raise CannotStartError(f"no benchmark is called {name!r}: choose one of {', '.join(found)}")
    return subprocess.run([sys.executable, str(found[name]), *rest], check=False).returncode  # noqa: S603 - ours
