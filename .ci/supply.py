"""What is in a release, and what is known against it: `supply.py sbom FILE`, `supply.py audit
[--skip-unreachable]`.

`sbom` writes the CycloneDX bill of materials of requirements/run.txt and of what the pages are bundled from,
and fails where a locked package or a hash is missing in it. `audit` asks vulnerability services about that
lock and the one of the build. Code 1: a vulnerability is known. Code 3: a package could not be audited, and
the lines name which; with `--skip-unreachable` that is 0, for a build that must not fail because a service is
away.
"""

import base64
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RUN = ROOT / "requirements/run.txt"
LOCKS = (RUN, ROOT / "requirements/dev.txt")
# What was bundled, each with its version and licence before its text; and the lock that it was bundled by.
BUNDLED, BUNDLED_LOCK = ROOT / "service/static/vendor/LICENSES.txt", ROOT / ".ci/vendor/package-lock.json"
# Both, as one may not be reached: the advisories of the index itself, and osv.dev.
SERVICES = ("pypi", "osv")
# A service that is slow must not hold a build up.
AUDIT_S = 120
# A service that restarts is back by then.
PAUSES_S = (5.0, 20.0)
VULNERABLE, NOT_AUDITED = 1, 3  # exit codes; 2 is a wrong command line


def locked(lock: Path) -> dict[str, set[str]]:
    """The packages of a lock, `name==version`, each with its hashes."""
    found: dict[str, set[str]] = {}
    for block in re.split(r"^(?=[A-Za-z0-9])", lock.read_text("utf-8"), flags=re.M)[1:]:
        name, version = re.match(r"([A-Za-z0-9._-]+)==([^\s;]+)", block).groups()  # type: ignore[union-attr]
        found.setdefault(f"{name}=={version}", set()).update(re.findall(r"sha256:([0-9a-f]{64})", block))
    return found


def missing_in(bom: dict[str, Any], lock: Path) -> list[str]:
    """The packages of a lock that a bill of materials does not have, with all of their hashes."""
    listed: dict[str, set[str]] = {}
    for part in bom["components"]:
        references = part.get("externalReferences", ())
        hashes = {each["content"] for reference in references for each in reference.get("hashes", ())}
        listed.setdefault(f"{part['name']}=={part['version']}", set()).update(hashes)
    return [name for name, hashes in locked(lock).items() if not hashes <= listed.get(name, set())]


def bundled() -> list[dict[str, Any]]:
    """The components of the pages, as CycloneDX has them. Raises LookupError for one that is not locked."""
    lock, found = json.loads(BUNDLED_LOCK.read_text("utf-8"))["packages"], []
    for text in re.split(r"^-{72}$", BUNDLED.read_text("utf-8"), flags=re.M):
        name, version, licence = re.match(r"\s*(\S+) (\S+), (\S+)\n", text).groups()  # type: ignore[union-attr]
        locked_as = lock.get(f"node_modules/{name}", {})
        if locked_as.get("version") != version:
            raise LookupError(f"{name} {version} is bundled and not locked: run `make vendor`")
        algorithm, _, digest = locked_as["integrity"].partition("-")
        url = f"pkg:npm/{name.replace('@', '%40')}@{version}"
        found.append(
            {
                "type": "library",
                "bom-ref": url,
                "name": name,
                "version": version,
                "licenses": [{"license": {"id": licence}}],
                "purl": url,
                "hashes": [
                    {"alg": algorithm.replace("sha", "SHA-"), "content": base64.b64decode(digest).hex()}
                ],
            }
        )
    return found


def sbom(target: Path) -> int:
    """Write the bill of materials; the exit code."""
    target.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-W", "ignore", "-m", "cyclonedx_py", "requirements", "--output-reproducible"]
    command += ["--pyproject", str(ROOT / "pyproject.toml"), "--of", "JSON", "-o", str(target), str(RUN)]
    subprocess.run(command, check=True)  # noqa: S603 - the tool of our lock
    bill, pages = json.loads(target.read_text("utf-8")), bundled()
    if missing := missing_in(bill, RUN):
        print(f"{target} lacks {', '.join(missing)}", file=sys.stderr)
        return 1
    bill["components"] += pages
    target.write_text(json.dumps(bill, indent=2) + "\n", "utf-8")
    print(f"{target}: {len(locked(RUN))} packages, and {len(pages)} in the pages")
    return 0


@dataclass(frozen=True)
class Verdict:
    """What a service said of a lock: `known` vulnerabilities, a line each, and the packages not `checked`."""

    known: tuple[str, ...] = ()
    checked: tuple[str, ...] = ()
    unchecked: tuple[str, ...] = ()
    why: str = ""

    @property
    def code(self) -> int:
        """The exit code."""
        return VULNERABLE if self.known else NOT_AUDITED if self.unchecked else 0

    def __str__(self) -> str:
        if self.known:
            return "; ".join(self.known)
        if self.unchecked:
            names = " ".join(self.unchecked)
            return f"NOT AUDITED: {len(self.unchecked)} packages ({self.why}): {names}"
        return f"{len(self.checked)} packages audited, none has a known vulnerability"


def verdict(report: dict[str, Any], packages: Sequence[str]) -> Verdict:
    """Return what the report of pip-audit says of the `packages` of a lock, `name==version` each."""
    parts = report["dependencies"]
    known = [
        f"{part['name']} {part['version']}: {each['id']} (mended in {' '.join(each['fix_versions']) or '-'})"
        for part in parts
        for each in part.get("vulns", ())
    ]
    checked = {f"{part['name']}=={part['version']}" for part in parts if "skip_reason" not in part}
    # Of a marker (another Python, another system) pip-audit asks nothing: it is not in the report at all.
    skipped = {part["name"]: part["skip_reason"] for part in parts if "skip_reason" in part}
    unchecked = [name for name in packages if name.partition("==")[0] in skipped]
    if not checked:
        unchecked = list(packages)
    why = next(iter(skipped.values()), "no package is in the report")
    return Verdict(tuple(known), tuple(sorted(checked)), tuple(unchecked), why)


def ask(lock: Path, service: str) -> Verdict:
    """Ask one service about a lock."""
    packages = list(locked(lock))
    command = [sys.executable, "-m", "pip_audit", "--require-hashes", "--disable-pip", "-r", str(lock)]
    command += ["--vulnerability-service", service, "--timeout", "10", "--format", "json"]
    command += ["--progress-spinner", "off"]
    try:
        done = subprocess.run(  # noqa: S603 - the tool of our lock
            command, capture_output=True, timeout=AUDIT_S, check=False, text=True
        )
    except subprocess.TimeoutExpired:
        return Verdict(unchecked=tuple(packages), why=f"{service} does not answer within {AUDIT_S} s")
    try:
        return verdict(json.loads(done.stdout), packages)
    except (ValueError, KeyError):
        # It ended before it had a report, and says why in its last line.
        last = (done.stderr.strip().splitlines() or [f"code {done.returncode}"])[-1]
        return Verdict(unchecked=tuple(packages), why=f"{service}: {last[:200]}")


def audit_lock(lock: Path, ask: Callable[[Path, str], Verdict], sleep: Callable[[float], None]) -> Verdict:
    """Ask the services in turn, again after each pause, until one has checked all of a lock.

    Returns the verdict that left the fewest packages unchecked; what is known against one counts at once.
    """
    best = Verdict(unchecked=tuple(locked(lock)), why="no service was asked")
    for pause_s in (0, *PAUSES_S):
        sleep(pause_s)
        for service in SERVICES:
            found = ask(lock, service)
            if found.known or not found.unchecked:
                return found
            best = min(found, best, key=lambda each: len(each.unchecked))
    return best


def audit(*, skip_unreachable: bool) -> int:
    """Audit the locks; the exit code. `skip_unreachable`: 0 where the services cannot be asked."""
    verdicts = {lock.name: audit_lock(lock, ask, time.sleep) for lock in LOCKS}
    for name, found in verdicts.items():
        print(f"{name}: {found}", flush=True)
    codes = {found.code for found in verdicts.values()}
    if VULNERABLE in codes:
        return VULNERABLE
    if NOT_AUDITED not in codes:
        return 0
    told = (
        "this goes on, as --skip-unreachable was given"
        if skip_unreachable
        else "give --skip-unreachable to go on"
    )
    print(
        f"WARNING: not all packages were audited; {told}. Run `make audit` where a service answers.",
        file=sys.stderr,
    )
    return 0 if skip_unreachable else NOT_AUDITED


def main(arguments: list[str]) -> int:
    """Run one of the two; the exit code."""
    match arguments:
        case ["sbom", target]:
            return sbom(Path(target))
        case ["audit", *options] if set(options) <= {"--skip-unreachable"}:
            return audit(skip_unreachable=bool(options))
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
