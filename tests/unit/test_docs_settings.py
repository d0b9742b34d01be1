"""docs/settings.md is what the declarations of all settings say, and the environment is read there alone;
and pictures are what is drawn.
"""

import ast
import re
from functools import cache
from importlib import import_module
from runpy import run_path
from typing import Any

import pytest

from foldin.reference import settings_reference
from processes.settings import HIDDEN, SettingsError, declarations, load
from tests.support import house

ROOT = house.ROOT
DOCUMENT = (ROOT / "docs/settings.md").read_text("utf-8")
# These are no process of the product; the one variable that benchmarks read stands in docs/accuracy.md.
PACKAGES = [package for package in house.packages(ROOT) if package not in house.BESIDE]


@cache
def settings_classes() -> list[type[Any]]:
    """Every class of the product with a field made by `setting(...)`, wherever it stands."""
    return [
        getattr(import_module(module.name), node.name)
        for package in PACKAGES
        for module in house.modules(ROOT, package)
        for node in module.tree.body
        if isinstance(node, ast.ClassDef) and any(map(_is_setting, node.body))
    ]


def _is_setting(field: ast.stmt) -> bool:
    call = field.value if isinstance(field, ast.AnnAssign) else None
    return isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "setting"


def test_the_pictures_of_the_concepts_are_what_their_script_draws() -> None:
    """`python docs/concepts/drawings.py` brings them up to date."""
    folder = ROOT / "docs/concepts"
    drawn = {name: draw() for name, draw in run_path(str(folder / "drawings.py"))["DRAWINGS"].items()}
    assert {path.stem: path.read_text("utf-8") for path in folder.glob("*.svg")} == drawn


def test_the_document_is_what_the_declarations_say() -> None:
    """`foldin settings > docs/settings.md` brings it up to date."""
    assert settings_reference() == DOCUMENT
    names = {
        name
        for cls in settings_classes()
        for _, each in declarations(cls)
        if each.help != HIDDEN
        for name in (each.variable, each.flag)
        if name
    }
    assert [name for name in sorted(names) if f"`{name}`" not in DOCUMENT] == []


def test_every_variable_that_the_code_names_is_documented() -> None:
    """Also one that is read past the declarations, or handed to another process."""
    named = {
        node.value
        for package in PACKAGES
        for module in house.modules(ROOT, package)
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        if re.fullmatch(r"FOLDIN_[A-Z0-9_]+", node.value)
    }
    rows = re.findall(r"^\| (`[^|]+`) \|", DOCUMENT, re.M)
    assert named == set(re.findall(r"FOLDIN_[A-Z0-9_]+", " ".join(rows)))


NUMBERS = ("-1", "1_0", "\uff19", "nan", "many", "9" * 30)

# What is refused when it is read.
READ: dict[str, tuple[str, ...]] = {
    "FOLDIN_ACCESS": ("yes", "OPEN"),
    "FOLDIN_DURABILITY": ("maybe", "FSYNC"),
    "FOLDIN_ENGINE": ("als", "Variational"),
    "FOLDIN_HOSTS": ("http://shop.example", "a/b", "*"),
    "FOLDIN_LOG_FORMAT": ("xml", "JSON"),
    "FOLDIN_LOG_LEVEL": ("info", "TRACE"),
    "FOLDIN_MAX_ITEMS": (*NUMBERS, "0", str(2**31)),
    "FOLDIN_NAMESPACE": ("a.b", "{a}", "a b", "a" * 65, "\uff41"),
    "FOLDIN_ORIGINS": ("shop.example", "https://shop.example/page", "*"),
    "FOLDIN_PARTITIONS": (*NUMBERS, "0", "4097"),
    "FOLDIN_PROXIES": ("proxy", "10.0.0.0/33", "10.0.0.1/8", "::/129"),
    "FOLDIN_REDIS_URL": (
        "redis", "http://user:hunter2@one", "redis://a..b", "redis://one:0", "redis+sentinel://one",
        f"redis://{'a' * 64}.b", "redis://one:65536", "redis://one:\uff16", "redis://one:6379/zero",
        "redis://[::1", "redis://[one]:6379", "redis://::1", "redis://one,two", "unix://",
        "unix://store.sock", "redis+sentinel://one:26379", "redis+sentinel://one:0/f",
        "redis+sentinel://a..b/f", "redis+sentinel://one,,two/f", "redis://user:hunter2/more@one",
    ),
    "FOLDIN_REFIT_SHARE": (*NUMBERS, "0", "101"),
    "FOLDIN_REFIT_SECONDS": (*NUMBERS, "0", "86401"),
    "FOLDIN_SCALE": ("5:1", "1", "1:5:0.3", "1:inf", "\uff11:5", "1_0:20"),
    "FOLDIN_TRACES_URL": ("collector:4318", "ftp://one"),
    "FOLDIN_TRAINER_ADDRESS": ("9108", "one:0", "one:65536", "one:\uff19", "[::1:9", "::1:9", "a..b:9"),
    "FOLDIN_TRASH_DAYS": (*NUMBERS, "36501"),
    "FOLDIN_WORKERS": (*NUMBERS, "0", "257"),
    "FOLDIN_ARCHIVE_DIR": ("\udcff", "s3://bucket/a", " S3:/KEY:hunter2@bucket/a"),
    **dict.fromkeys(("FOLDIN_ENVIRONMENT_SEED", "FOLDIN_REFIT_GROWTH", "FOLDIN_TRASH_BYTES"), NUMBERS),
    **dict.fromkeys(("FOLDIN_ENVIRONMENT_PORT", "FOLDIN_PORT"), (*NUMBERS, "65536")),
    **dict.fromkeys(("FOLDIN_STORE_TIMEOUT_S", "FOLDIN_LINGER_S"), (*NUMBERS, "0", "61")),
    **dict.fromkeys(("FOLDIN_FIT_THREADS", "FOLDIN_PLAY_STEPS"), (*NUMBERS, "0")),
    **dict.fromkeys(("FOLDIN_REFIT_EVENTS", "FOLDIN_STREAM_LIMIT"), (*NUMBERS, "0")),
}  # fmt: skip


@pytest.mark.parametrize("variable", READ)
def test_a_value_that_is_read_wrong_is_one_line(variable: str) -> None:
    for cls in settings_classes():
        reads = variable in {each.variable for _, each in declarations(cls)}
        for value in READ[variable] if reads else ():
            with pytest.raises(SettingsError) as caught:
                load(cls, (), {variable: value})
            told = [problem for problem in caught.value.problems if problem.startswith(f"{variable} ")]
            assert len(told) == 1, caught.value.problems
            assert told[0].isprintable()
            assert "must" in told[0]
            assert "hunter2" not in str(caught.value)
