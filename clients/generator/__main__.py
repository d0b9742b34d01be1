"""`python -m clients.generator` writes what is made of the description; `--check` says what is old."""

import subprocess
import sys
from pathlib import Path

from clients.generator import document, javascript_code, python_code, unasync

FOLDER = Path(__file__).resolve().parents[1]
PYTHON = Path("python/foldin_client")
JAVASCRIPT = Path("javascript")
BOTH = ("__init__", "transport", "operations", "client")


def made() -> dict[Path, str]:
    """Return each file that is made, below `clients`, and its text."""
    found = document.read()
    files = {
        PYTHON / "models.py": formatted(python_code.models(found)),
        PYTHON / "problems.py": formatted(python_code.problems(found)),
        PYTHON / "asynchronous/operations.py": formatted(python_code.operations(found)),
    }
    written = (FOLDER / JAVASCRIPT / "written.d.ts").read_text("utf-8")
    files[JAVASCRIPT / "operations.js"] = javascript_code.operations(found)
    files[JAVASCRIPT / "foldin.d.ts"] = javascript_code.declarations(found, written)
    for name in BOTH:
        of = PYTHON / f"asynchronous/{name}.py"
        text = files.get(of) or (FOLDER / of).read_text("utf-8")
        head = (
            ""
            if text.startswith("# Made")
            else "# Made by `make clients` of asynchronous/: change that, not this.\n"
        )
        files[PYTHON / f"synchronous/{name}.py"] = formatted(head + unasync.blocking(text))
    return files


def formatted(code: str) -> str:
    """Return Python as `ruff` writes it."""
    ruff = Path(sys.executable).parent / "ruff"
    for command in (["check", "--fix", "--select", "I,F401", "-q"], ["format", "-q"]):
        done = subprocess.run(  # noqa: S603  # a program of this environment
            [ruff, *command, "--stdin-filename", str(FOLDER / PYTHON / "made.py"), "-"],
            check=False,
            input=code,
            capture_output=True,
            text=True,
            cwd=FOLDER.parent,
        )
        if done.returncode:
            raise RuntimeError(f"ruff refuses what was made: {done.stderr or done.stdout}\n{code}")
        code = done.stdout
    return code


def old() -> list[Path]:
    """Return the files that are not what would be made now."""
    return [path for path, text in made().items() if _text(FOLDER / path) != text]


def _text(path: Path) -> str:
    return path.read_text("utf-8") if path.exists() else ""


def main(arguments: list[str]) -> int:
    """Write or check. Return the exit code."""
    changed = old() if "--check" in arguments else []
    if changed:
        print("\n".join(f"clients/{path} is old: run `make clients`" for path in changed))
        return 1
    if "--check" not in arguments:
        for path, text in made().items():
            (FOLDER / path).write_text(text, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
