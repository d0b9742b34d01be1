"""Count how large the house is, and hold it to `.ci/house.json`: each figure there may fall and never rise.

`python .ci/house.py` prints the figures. `--check` fails if one is above its bound, if a commit raised a
bound, or if a commit added too much at once. `--lower` lowers the bounds to today's figures.
"""

import ast
import io
import json
import re
import subprocess
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

BOUNDS = Path(".ci/house.json")
BESIDE = {"tests", "benchmarks", "torture", "clients", ".ci", "docs", "deploy"}
# Pages that a command prints, and tables that one writes into a page, between its markers
# (benchmarks/harness/recorded.py).
PRINTED = {"docs/cli.md", "docs/settings.md"}
RECORDED = re.compile(r"<!-- [^\n]*, by --record -->\n.*?<!-- end of [^\n]* -->\n", re.DOTALL)

# A commit of 20,000 lines can be read by nobody; this much can be read at one sitting.
MOST_ADDED = 1_500
# How many commits are looked at for that: more than are made between two releases.
COMMITS = 300

# Words that begin a comment whose subject comes later, or never.
_FOG = re.compile(
    r"(?:Of|What|As|One|Where|That|Those|So many|So much|Whether|None|Nothing|Not)\b(?! of these)"
)
# Longest sentence that is taken in at the first reading.
MOST_WORDS = 25
# Comments that tools read.
_DIRECTIVE = re.compile(r"#\s*(?:noqa|type:|mypy:|ruff:|pragma:|shellcheck|!)")


def lines_of(paths: list[Path]) -> int:
    """Return how many lines files have together."""
    return sum(path.read_bytes().count(b"\n") for path in paths)


def written_bytes(pages: list[Path]) -> int:
    """Return how much of these pages people wrote: without printed pages and recorded tables."""
    texts = (path.read_text("utf-8") for path in pages if not path.as_posix().endswith(tuple(PRINTED)))
    return sum(len(RECORDED.sub("", text).encode()) for text in texts)


def tracked() -> list[Path]:
    """Return the files that git tracks and that are there."""
    listed = subprocess.run(["git", "ls-files", "-z"], capture_output=True, check=True).stdout  # noqa: S607
    return [Path(name.decode()) for name in listed.split(b"\0") if name and Path(name.decode()).is_file()]


def is_product(path: Path) -> bool:
    """Tell whether a file is Python or Lua that users run."""
    return path.suffix in {".py", ".lua"} and path.parts[0] not in BESIDE


def blocks_of(source: str) -> Iterator[tuple[int, str]]:
    """Yield each docstring and each run of comment lines of a module, with its line's number."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield node.body[0].lineno, text
    first, last, lines = 0, -1, list[str]()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT or _DIRECTIVE.match(token.string):
            continue
        alone = not token.line[: token.start[1]].strip()
        if not (alone and lines and token.start[0] == last + 1):
            if lines:
                yield first, " ".join(lines)
            first, lines = token.start[0], []
        last = token.start[0] if alone else -1
        lines.append(token.string.lstrip("# ").strip())
    if lines:
        yield first, " ".join(lines)


def is_foggy(text: str) -> bool:
    """Tell whether a block begins without its subject, or has a sentence of more than `MOST_WORDS` words."""
    # Paragraphs, items of lists and code are not one sentence.
    parts = re.split(r"(?<=[.!?:;])\s+|\n\s*\n|\n\s*[-*>|]|``", text)
    return bool(_FOG.match(text)) or any(len(part.split()) > MOST_WORDS for part in parts)


def constants_of(source: str) -> int:
    """Return how many names in capitals a module assigns at its top."""
    names = (
        target.id
        for node in ast.parse(source).body
        if isinstance(node, ast.Assign | ast.AnnAssign)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Name)
    )
    return sum(bool(re.fullmatch(r"_?[A-Z][A-Z0-9_]+", name)) for name in names)


def figures(files: list[Path]) -> dict[str, int]:
    """Return what may only fall."""
    product = [path for path in files if is_product(path)]
    python = {path: path.read_text("utf-8") for path in product if path.suffix == ".py"}
    lua = b"".join(path.read_bytes() for path in product if path.suffix == ".lua")
    settings = Path("docs/settings.md").read_text("utf-8")
    return {
        "product lines, Python and Lua": lines_of(product),
        "modules": len(python),
        "Lua functions": len(re.findall(rb"^register\w*\(", lua, re.MULTILINE)),
        "module constants": sum(map(constants_of, python.values())),
        "FOLDIN_ names": len(set(re.findall(r"\bFOLDIN_[A-Z_]+", settings))),
        "foggy comments and docstrings": sum(
            is_foggy(text) for source in python.values() for _line, text in blocks_of(source)
        ),
        "lines of tests": lines_of(
            [path for path in files if path.suffix == ".py" and path.parts[0] == "tests"]
        ),
    }


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], capture_output=True, check=False, text=True).stdout  # noqa: S603, S607


def raised_bounds(bounds: dict[str, int]) -> list[str]:
    """Return a line for each bound that is higher than in the commit before, or in the one before that."""
    found = []
    for commit in ("HEAD", "HEAD~1"):
        before: dict[str, int] = json.loads(_git("show", f"{commit}:{BOUNDS}") or "{}")
        found += [
            f"{BOUNDS}: {name} was {bound:,} in {commit} and may only fall"
            for name, bound in before.items()
            if bounds.get(name, sys.maxsize) > bound
        ]
    return found


def large_commits() -> list[str]:
    """Return a line for each commit under these bounds that adds more than `MOST_ADDED` product lines."""
    since = _git("log", "--diff-filter=A", "--format=%H", "--", str(BOUNDS)).split()
    if not since:
        return []
    log = _git(
        "log",
        f"-{COMMITS}",
        "--no-merges",
        "--no-renames",
        "--numstat",
        "--format=commit %h",
        f"{since[-1]}..HEAD",
    )
    net, commit = Counter[str](), ""
    for line in log.splitlines():
        if line.startswith("commit "):
            commit = line.removeprefix("commit ")
        elif line and is_product(Path(line.split("\t")[2])):
            added, removed, _name = line.split("\t")
            net[commit] += int(added) - int(removed)
    return [
        f"{commit} adds {count:,} product lines: at most {MOST_ADDED:,}, make it several steps"
        for commit, count in net.items()
        if count > MOST_ADDED
    ]


def check() -> list[str]:
    """Return what breaks a bound, a line each."""
    bounds: dict[str, int] = json.loads(BOUNDS.read_text("utf-8"))
    found = figures(tracked())
    above = [
        f"{name}: {found[name]:,}, at most {bound:,} ({BOUNDS}): take out elsewhere what was added"
        for name, bound in bounds.items()
        if found[name] > bound
    ]
    return above + raised_bounds(bounds) + large_commits()


def lower() -> None:
    """Lower each bound that today's figure is below."""
    bounds: dict[str, int] = json.loads(BOUNDS.read_text("utf-8"))
    found = figures(tracked())
    lowered = {name: min(count, bounds.get(name, count)) for name, count in found.items()}
    BOUNDS.write_text(json.dumps(lowered, indent=2) + "\n", "utf-8")


def report() -> None:
    """Print what git tracks."""
    files = tracked()
    python = [path for path in files if path.suffix == ".py"]
    product = [path for path in python if path.parts[0] not in BESIDE]
    print(f"product: {lines_of(product):,} lines of Python in {len(product)} files")
    for package, count in sorted(Counter(path.parts[0] for path in product).items()):
        own = [path for path in product if path.parts[0] == package]
        print(f"  {package}: {lines_of(own):,} in {count}")
    for name in sorted(BESIDE & {path.parts[0] for path in python}):
        own = [path for path in python if path.parts[0] == name]
        print(f"{name}: {lines_of(own):,} lines in {len(own)} files")
    texts = [path for path in files if path.parts[0] == "docs" and path.suffix == ".md"]
    total = sum(path.stat().st_size for path in texts)
    print(f"documents: {total / 1e3:,.1f} KB in {len(texts)} files")
    print(f"  text that people wrote: {written_bytes(texts) / 1e3:,.1f} KB")
    bounds: dict[str, int] = json.loads(BOUNDS.read_text("utf-8")) if BOUNDS.exists() else {}
    print("what may only fall:")
    for name, count in figures(files).items():
        print(f"  {name}: {count:,} (at most {bounds.get(name, count):,})")


def main() -> None:
    """Print, check, or lower the bounds."""
    if "--check" in sys.argv:
        found = check()
        print(*found, sep="\n", end="\n" if found else "")
        sys.exit(bool(found))
    if "--lower" in sys.argv:
        lower()
    else:
        report()


if __name__ == "__main__":
    main()
