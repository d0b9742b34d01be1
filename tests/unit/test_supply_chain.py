"""What a release is made of is named: no image is whatever is newest; bill and audit say what they saw."""

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest

from tests.support import house

ROOT_FILES = ("docker-compose.yml", "Dockerfile", "Makefile", "pyproject.toml")
FILES = (*ROOT_FILES, ".ci/*", ".github/**/*", "deploy/**/*")
LATEST = re.compile(r"[:@]latest\b")


def supply() -> Any:
    """The script of `make sbom` and `make audit`, which no package imports."""
    spec = importlib.util.spec_from_file_location("supply", house.ROOT / ".ci/supply.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_nothing_is_the_latest() -> None:
    """An image without a tag is that, too."""
    found = []
    for pattern in FILES:
        for path in house.ROOT.glob(pattern):
            if not path.is_file() or path.suffix in {".png", ".pyc"}:
                continue
            text = path.read_text("utf-8")
            found += [
                f"{path.name}: {line}" for line in text.splitlines() if re.search(r"[:@]latest\b", line)
            ]
            images = re.findall(r"^\s*(?:image:|FROM)\s+(\S+)", text, re.M)
            stages = set(re.findall(r"^FROM\s+\S+\s+AS\s+(\S+)", text, re.M))
            found += [
                f"{path.name}: {image}"
                for image in images
                if ":" not in image and image not in stages and not image.startswith("$")
            ]
    assert found == []


def test_ci_makes_the_bill_of_materials_and_audits() -> None:
    run = (house.ROOT / ".ci/run").read_text("utf-8")
    assert "make sbom" in run
    # A build must not fail because a service is away; it says so loudly, and a release runs `make audit`.
    assert "make audit AUDIT=--skip-unreachable" in run


def test_a_bill_that_lacks_a_package_or_a_hash_is_told() -> None:
    module = supply()
    whole = {
        "components": [
            {
                "name": name.partition("==")[0],
                "version": name.partition("==")[2],
                "externalReferences": [{"hashes": [{"content": each} for each in hashes]}],
            }
            for name, hashes in module.locked(module.RUN).items()
        ]
    }
    assert len(whole["components"]) >= 20
    assert module.missing_in(whole, module.RUN) == []
    lost = whole["components"].pop()
    whole["components"][0]["externalReferences"] = []
    first = whole["components"][0]
    expected = {f"{part['name']}=={part['version']}" for part in (first, lost)}
    assert set(module.missing_in(whole, module.RUN)) == expected


def test_the_bill_has_what_the_pages_are_bundled_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = supply()
    found = {each["name"]: each for each in module.bundled()}
    assert {"preact", "@preact/signals", "htm", "uplot", "swagger-ui-dist"} <= found.keys()
    assert found["@preact/signals"]["purl"].startswith("pkg:npm/%40preact/signals@")
    assert all(len(each["hashes"][0]["content"]) == 128 for each in found.values())
    # Of another version than what is locked.
    other = tmp_path / "LICENSES.txt"
    other.write_text(module.BUNDLED.read_text("utf-8").replace(f"htm {found['htm']['version']}", "htm 0.0.1"))
    monkeypatch.setattr(module, "BUNDLED", other)
    with pytest.raises(LookupError, match=r"htm 0\.0\.1 is bundled and not locked"):
        module.bundled()


PACKAGES = ["a==1", "b==2"]
CLEAN = [{"name": "a", "version": "1", "vulns": []}, {"name": "b", "version": "2", "vulns": []}]
KNOWN = {"name": "a", "version": "1", "vulns": [{"id": "CVE-1", "fix_versions": ["2"]}]}
SKIPPED = {"name": "b", "skip_reason": "not found"}


@pytest.mark.parametrize(
    ("parts", "code", "says"),
    [
        (CLEAN, 0, "2 packages audited"),
        ([], 3, "NOT AUDITED: 2 packages (no package is in the report): a==1 b==2"),
        ([CLEAN[0], SKIPPED], 3, "NOT AUDITED: 1 packages (not found): b==2"),
        ([{"name": "a", "skip_reason": "not found"}, SKIPPED], 3, "NOT AUDITED: 2 packages"),
        ([KNOWN, SKIPPED], 1, "a 1: CVE-1 (mended in 2)"),
    ],
)
def test_an_audit_says_what_it_saw(parts: list[dict[str, Any]], code: int, says: str) -> None:
    found = supply().verdict({"dependencies": parts}, PACKAGES)
    assert found.code == code
    assert says in str(found)


def test_a_service_that_cannot_be_reached_is_asked_again_and_then_the_audit_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = supply()
    away = module.Verdict(unchecked=("a==1",), why="osv: no route to host")
    asked: list[str] = []
    paused: list[float] = []

    def ask(_lock: object, service: str) -> Any:
        asked.append(service)
        return away

    assert module.audit_lock(module.RUN, ask, paused.append) is away
    assert (asked, paused) == (list(module.SERVICES) * 3, [0, *module.PAUSES_S])
    # One that knows more is believed, and what is known against a package ends the questions.
    asked.clear()
    known = module.Verdict(known=("a 1: CVE-1",))
    assert (
        module.audit_lock(module.RUN, lambda _, service: known if service == "osv" else away, print) is known
    )
    monkeypatch.setattr(module, "audit_lock", lambda *_: away)
    assert module.main(["audit"]) == 3
    assert module.main(["audit", "--skip-unreachable"]) == 0
    told = capsys.readouterr()
    assert "NOT AUDITED: 1 packages (osv: no route to host): a==1" in told.out
    assert told.err.count("WARNING: not all packages were audited") == 2
    assert module.main(["audit", "--whatever"]) == 2


def test_a_service_without_a_report_is_told_by_its_last_line() -> None:
    """Of a real process: here pip-audit is not installed, or finds no such service."""
    module = supply()
    found = module.ask(module.RUN, "no-such-service")
    assert found.code == 3
    assert len(found.unchecked) >= 20
    assert found.why.startswith("no-such-service: ")
