"""What is in a release, and what is known against it: `supply.py sbom FILE`, `supply.py audit`.

`sbom` writes the CycloneDX bill of materials of requirements/run.txt, and fails where a locked package or a
hash is missing in it. `audit` asks a vulnerability service about that lock and the one of the build: code 1
where a vulnerability is known, and 0 with a line that says so where the service cannot be asked.
"""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RUN = ROOT / "requirements/run.txt"
LOCKS = (RUN, ROOT / "requirements/dev.txt")
# Both, as one may not be reached: the advisories of the index itself, and osv.dev.
SERVICES = ("pypi", "osv")
# A service that is slow must not hold a build up.
AUDIT_S = 120


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


def sbom(target: Path) -> int:
    """Write the bill of materials; the exit code."""
    target.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-W", "ignore", "-m", "cyclonedx_py", "requirements", "--output-reproducible"]
    command += ["--pyproject", str(ROOT / "pyproject.toml"), "--of", "JSON", "-o", str(target), str(RUN)]
    subprocess.run(command, check=True)  # noqa: S603 - the tool of our lock
    if missing := missing_in(json.loads(target.read_text("utf-8")), RUN):
        print(f"{target} lacks {', '.join(missing)}", file=sys.stderr)
        return 1
    print(f"{target}: {len(locked(RUN))} packages")
    return 0


def verdict(report: dict[str, Any]) -> tuple[int, str]:
    """The exit code and the line for what pip-audit found in one lock."""
    parts = report["dependencies"]
    known = [
        f"{part['name']} {part['version']}: {each['id']} (mended in {' '.join(each['fix_versions']) or '-'})"
        for part in parts
        for each in part.get("vulns", ())
    ]
    if known:
        return 1, "; ".join(known)
    asked = [part for part in parts if "skip_reason" not in part]
    if not asked:
        return 0, "NOT AUDITED: the vulnerability service knows none of the packages, so it was not reached"
    return 0, f"{len(asked)} of {len(parts)} packages audited, none has a known vulnerability"


def audit() -> int:
    """Audit the locks; the exit code."""
    worst = 0
    for lock in LOCKS:
        code, line = 0, "NOT AUDITED: no vulnerability service can be reached"
        for service in SERVICES:
            command = [
                sys.executable,
                "-m",
                "pip_audit",
                "--require-hashes",
                "--disable-pip",
                "-r",
                str(lock),
            ]
            command += ["--vulnerability-service", service, "--timeout", "10", "--format", "json"]
            command += ["--progress-spinner", "off"]
            try:
                done = subprocess.run(  # noqa: S603 - the tool of our lock
                    command, capture_output=True, timeout=AUDIT_S, check=False
                )
                code, line = verdict(json.loads(done.stdout))
            except (subprocess.TimeoutExpired, ValueError, KeyError):
                # No report: it ended before it had one.
                continue
            if not line.startswith("NOT"):
                break
        print(f"{lock.name}: {line}")
        worst = max(worst, code)
    return worst


def main(arguments: list[str]) -> int:
    """Run one of the two; the exit code."""
    match arguments:
        case ["sbom", target]:
            return sbom(Path(target))
        case ["audit"]:
            return audit()
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
