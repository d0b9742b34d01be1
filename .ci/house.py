"""Prints how large the house is: lines and files of the product, its Lua, tests and documents."""

import re
import subprocess
from collections import Counter
from pathlib import Path

BESIDE = {"tests", "benchmarks", "torture", "clients", ".ci", "docs", "deploy"}
# Pages that a command prints, and tables that one writes into a page, between its markers
# (benchmarks/harness/recorded.py).
PRINTED = {"docs/cli.md", "docs/settings.md"}
RECORDED = re.compile(r"<!-- [^\n]*, by --record -->\n.*?<!-- end of [^\n]* -->\n", re.DOTALL)


def lines_of(paths: list[Path]) -> int:
    """Return how many lines files have together."""
    return sum(path.read_bytes().count(b"\n") for path in paths)


def written_bytes(pages: list[Path]) -> int:
    """Return how much of these pages people wrote: without printed pages and recorded tables."""
    texts = (path.read_text("utf-8") for path in pages if not path.as_posix().endswith(tuple(PRINTED)))
    return sum(len(RECORDED.sub("", text).encode()) for text in texts)


def main() -> None:
    """Count what git tracks."""
    listed = subprocess.run(["git", "ls-files", "-z"], capture_output=True, check=True).stdout  # noqa: S607
    files = [Path(name.decode()) for name in listed.split(b"\0") if name and Path(name.decode()).is_file()]
    python = [path for path in files if path.suffix == ".py"]
    product = [path for path in python if path.parts[0] not in BESIDE]
    print(f"product: {lines_of(product):,} lines of Python in {len(product)} files")
    for package, count in sorted(Counter(path.parts[0] for path in product).items()):
        own = [path for path in product if path.parts[0] == package]
        print(f"  {package}: {lines_of(own):,} in {count}")
    lua = [path for path in files if path.suffix == ".lua"]
    functions = sum(len(re.findall(rb"^register\w*\(", path.read_bytes(), re.MULTILINE)) for path in lua)
    print(f"Lua: {lines_of(lua):,} lines, {functions} functions")
    for name in sorted(BESIDE & {path.parts[0] for path in python}):
        own = [path for path in python if path.parts[0] == name]
        print(f"{name}: {lines_of(own):,} lines in {len(own)} files")
    tests = Counter[str]()
    for path in python:
        if path.parts[0] == "tests":
            tests["/".join(path.parts[1:3]) if len(path.parts) > 3 else path.parts[1]] += lines_of([path])
    for name, count in sorted(tests.items()):
        print(f"  {name}: {count:,}")
    texts = [path for path in files if path.parts[0] == "docs" and path.suffix == ".md"]
    total = sum(path.stat().st_size for path in texts)
    print(f"documents: {total / 1e3:,.1f} KB in {len(texts)} files")
    print(f"  text that people wrote: {written_bytes(texts) / 1e3:,.1f} KB")


if __name__ == "__main__":
    main()
