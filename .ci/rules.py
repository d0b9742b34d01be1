"""Hold the code to the rules of CONTRIBUTING.md, and documents to the code.

Prints what breaks one; code 1 where anything does.
"""

import ast
import gzip
import json
import re
import shlex
import sys
import tomllib
from collections.abc import Callable, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from house import written_bytes  # of .ci/house.py

from clients.generator import document
from environment.settings import ServerSettings
from evaluation.course.settings import EvaluationSettings, PlaySettings
from foldin.commands.running import find
from foldin.commands.table import BENCH, EVALUATE, TORTURE, loaded
from foldin.evaluating import EvaluateOptions
from processes.settings import SettingsError, left_over, load
from service.routes import ROUTES
from service.settings import ServiceSettings
from tests.support import house
from tests.support.examples import example
from torture.campaign import TortureOptions
from trainer.settings import TrainerSettings

ROOT = house.ROOT
# Where in the code something is.
PLACE = re.compile(r"`([\w/]+\.(?:py|lua)):([\w.]+)`")

# Each has a term of the field, or the subject itself, in its place.
PRIVATE_WORDS = re.compile(
    r"(?<![a-z])"
    r"(nobody|whoever|somebody|patiently|leftout|seteffects?|periodgroups?|shortway|storedrows|duties"
    # A field of the store has the name `loose`, in quotes: it is stored.
    r"|askers?|wish(?:es)?|(?<![\"'`])loose)"
    r"(?![a-z])",
    re.I,
)
_READ_BY_PEOPLE = {".py", ".lua", ".js", ".html", ".css", ".md", ".svg", ".yml"}

MODULES = {
    "environment": ServerSettings,
    "evaluation.course.play": PlaySettings,
    "service": ServiceSettings,
    "trainer": TrainerSettings,
}
COMMAND = re.compile(r"(?:[A-Z_]+=\S+ )*(?:\.venv/bin/)?(curl|foldin|make|python) ([^|;&>]*)")
# Gzipped, of the scripts that every page loads or draws by; those of /docs are others.
VENDORED, MOST_VENDORED_BYTES = ("preact.js", "uplot.js"), 32 * 1024
# Printed from the declarations, and compared with them: tests/unit/test_docs_settings.py.
PRINTED = {"cli.md", "settings.md"}

MOST_WRITTEN_BYTES = 170_000
ROLE = re.compile(r'"(read|rate|operate)"')
Rule = Callable[[Path], list[str]]


def definitions(path: Path) -> set[str]:
    """Dotted names that a file defines: functions, classes and their members, assigned names."""
    text = path.read_text("utf-8")
    if path.suffix == ".lua":
        return set(re.findall(r"^(?:(?:local )?function |register\(')(\w+)", text, re.M))
    found: set[str] = set()

    def visit(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                found.add(prefix + node.name)
                if isinstance(node, ast.ClassDef):
                    visit(node.body, f"{prefix}{node.name}.")
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                names = (name for target in targets for name in ast.walk(target))
                found.update(prefix + name.id for name in names if isinstance(name, ast.Name))

    visit(ast.parse(text).body, "")
    return found


def dangling_references(root: Path) -> list[str]:
    """Files, names in them and modules of a document that are not there, and links that lead nowhere."""
    found = []
    for page in (root / "README.md", root / "CONTRIBUTING.md", *sorted((root / "docs").rglob("*.md"))):
        text = page.read_text("utf-8")
        files = re.findall(r"`([\w.-]+(?:/[\w.-]+)+\.(?:py|lua|md|yml))(?::[\w.]+)?`", text)
        missing = [file for file in files if not (root / file).is_file()]
        missing += [
            f"{file}:{name}"
            for file, name in PLACE.findall(text)
            if (root / file).is_file() and name not in definitions(root / file)
        ]
        for name in re.findall(r"python -m ([\w.]+)", text):
            # In the wheel the packages are under `foldin`.
            modules = [root / each.replace(".", "/") for each in (name, name.removeprefix("foldin."))]
            if not any(
                module.with_suffix(".py").is_file() or (module / "__main__.py").is_file()
                for module in modules
            ):
                missing.append(name)
        for target, heading in re.findall(r"\]\(([\w./-]*)(?:#([\w-]+))?\)", text):
            linked = page.parent / target if target else page
            if not linked.exists():
                missing.append(target)
            elif heading and heading not in map(slug, linked.read_text("utf-8").splitlines()):
                missing.append(f"{target}#{heading}")
        found += [f"{page.relative_to(root)}: {name}" for name in missing]
    return found


def alerts_without_runbooks(root: Path) -> list[str]:
    """Alerts whose address in the manual leads to no heading."""
    alerts = (root / "deploy/prometheus/alerts.yml").read_text("utf-8")
    headings = set(map(slug, (root / "docs/alerts.md").read_text("utf-8").splitlines()))
    names = re.findall(r"- alert: (\w+)", alerts)
    told = set(re.findall(r"/alerts\.html#(\w+)'", alerts))
    return [name for name in names if name.lower() not in headings & told]


def slug(line: str) -> str:
    title = re.match(r"#+ (.*)", line)
    return re.sub(r"[^\w -]", "", title[1]).lower().replace(" ", "-") if title else ""


def cycle_of(graph: dict[str, set[str]]) -> list[str]:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        cycle: list[str] = error.args[1]
        return cycle
    return []


def by_room(graph: dict[str, set[str]]) -> dict[str, set[str]]:
    """The same graph between rooms: a folder inside a package is one, a module beside it another."""
    rooms: dict[str, set[str]] = {}
    for name, others in graph.items():
        room = _room(name)
        rooms.setdefault(room, set()).update({_room(other) for other in others} - {room})
    return rooms


def _room(name: str) -> str:
    return ".".join(name.split(".")[:2])


def module_cycles(root: Path) -> list[str]:
    return cycle_of(house.imports(house.all_modules(root)))


def room_cycles(root: Path) -> list[str]:
    return cycle_of(by_room(house.imports(house.all_modules(root))))


def private_words(root: Path) -> list[str]:
    """Words that only this project has: in code of any language, tests, and documents for people of today."""
    folders = [*house.packages(root), "clients", "tests", "docs", "deploy"]
    files = [root / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "Makefile")]
    files += [path for folder in folders for path in sorted((root / folder).rglob("*"))]
    return [
        f"{path.relative_to(root)}:{number} {match.group()}"
        for path in files
        if (path.suffix in _READ_BY_PEOPLE or path.name == "Makefile") and path.is_file()
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        if (match := PRIVATE_WORDS.search(line))
    ]


def clients_apart(root: Path) -> list[str]:
    """What the clients, which are packages of their own, say otherwise than Foldin: version, Python, what
    they need, licence; and calls that JavaScript does not declare.
    """
    client, whole = (
        tomllib.loads((folder / "pyproject.toml").read_text("utf-8"))["project"]
        for folder in (root / house.CLIENT, root)
    )
    javascript = root / "clients/javascript"
    packed = json.loads((javascript / "package.json").read_text("utf-8"))
    declared = (javascript / "foldin.d.ts").read_text("utf-8")
    holds = {
        "version of the Python client": client["version"] == whole["version"],
        "version of the JavaScript client": packed["version"] == whole["version"].replace(".dev", "-dev."),
        "requires-python": client["requires-python"] == whole["requires-python"],
        "dependencies": set(client["dependencies"]) <= set(whole["dependencies"]),
        "LICENSE": (root / house.CLIENT / "LICENSE").read_text() == (root / "LICENSE").read_text(),
        "files of package.json": set(packed["files"]) == {"foldin.js", "foldin.d.ts", "operations.js"},
        "dependencies of package.json": "dependencies" not in packed,
    }
    holds |= {
        f"foldin.d.ts: {each.name}": bool(re.search(rf"^  {each.name}\(", declared, re.M))
        for each in document.read().operations
    }
    return [name for name, is_so in holds.items() if not is_so]


def commands(text: str) -> Iterator[tuple[str, list[str]]]:
    for block in re.findall(r"^```(?:console|sh)?\n(.*?)^```$", text, re.M | re.DOTALL):
        for line in re.sub(r"\\\n", " ", block).splitlines():
            if found := COMMAND.match(line.removeprefix("$ ")):
                yield found[1], shlex.split(found[2] if found[1] != "curl" else line, comments=True)


def is_taken(program: str, words: list[str]) -> bool:
    """Whether something takes a command. Raises SettingsError for flags that are none."""
    if program == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.M)
        return all("=" in word or word in targets for word in words)
    if program == "python":
        if words[0] == "-m" and words[1] in MODULES:
            load(MODULES[words[1]], words[2:], {})
        return True
    if program == "curl":
        told = example(words[words.index("curl") :], "")
        path = "/" + told.path.partition("?")[0]
        known = [each for each in ROUTES if re.fullmatch(re.sub(r"\{[^}]*\}", "[^/]+", each.path), path)]
        return told.method in {each.method for each in known}
    call = find(words, {})
    if call is None or call.command is BENCH:
        return call is not None
    options = TortureOptions if call.command is TORTURE else loaded(call.command.options)
    if call.command is EVALUATE:
        # Of a file, or of the course's protocol.
        is_file = any(not each.startswith("-") for each in left_over(EvaluateOptions, call.arguments))
        is_course = not left_over(EvaluationSettings, call.arguments)
        options = EvaluateOptions if is_file and not is_course else EvaluationSettings
    load(options, call.arguments, {})
    return True


def buttons_of_other_roles(root: Path) -> list[str]:
    """Pages whose buttons ask for other roles than their calls that change something need."""
    found = []
    for path in sorted((root / "service/static/app").glob("*.js")):
        text = path.read_text("utf-8")
        needed = set()
        for method, asked in re.findall(r"""call\("(\w+)", ["`]([^"`?]*)""", text):
            shape = re.sub(r"\$\{[^/]*\}", "x", asked)
            known = (
                each
                for each in ROUTES
                if each.method == method and re.fullmatch(re.sub(r"\{[^}]*\}", "[^/]+", each.path), shape)
            )
            needed |= {each.needs for each in known}
        told = {
            name for part in re.findall(r"role=(\S+ ?\?[^}]*\}|\S+)", text) for name in ROLE.findall(part)
        }
        if needed - {"read"} != told - {"read"}:
            found.append(f"{path.name}: its calls need {sorted(needed)}, its buttons {sorted(told)}")
    return found


def untaken_commands(root: Path) -> list[str]:
    """Commands of the documents that nothing takes."""
    found = []
    paths = [root / "README.md", root / "CONTRIBUTING.md", *root.glob("docs/*.md")]
    for path in (each for each in paths if each.name not in PRINTED):
        for program, words in commands(path.read_text("utf-8")):
            try:
                if not is_taken(program, words):
                    found.append(f"{path.name}: nothing takes {program} {words}")
            except SettingsError as error:
                found.append(f"{path.name}: {program} {words}: {error}")
    return found


def heavy_scripts(root: Path) -> list[str]:
    """Vendored scripts of the dashboard (Preact with htm and signals, uPlot), where they weigh too much."""
    scripts = [(root / "service/static/vendor" / name).read_bytes() for name in VENDORED]
    weight = sum(len(gzip.compress(each, mtime=0)) for each in scripts)
    return [f"{weight:,} bytes of {VENDORED}"] if weight > MOST_VENDORED_BYTES else []


def long_manual(root: Path) -> list[str]:
    """How much of the manual people wrote, as `make house` counts it, where that is too much to read."""
    written = written_bytes(list((root / "docs").rglob("*.md")))
    return [f"{written:,} bytes, of {MOST_WRITTEN_BYTES:,}"] if written > MOST_WRITTEN_BYTES else []


RULES: tuple[Rule, ...] = (
    module_cycles,
    room_cycles,
    private_words,
    dangling_references,
    alerts_without_runbooks,
    clients_apart,
    untaken_commands,
    buttons_of_other_roles,
    long_manual,
    heavy_scripts,
)


if __name__ == "__main__":
    broken = [f"{rule.__name__}: {each}" for rule in RULES for each in rule(ROOT)]
    print(*broken, sep="\n", end="\n" * bool(broken))
    sys.exit(bool(broken))
