"""What is in a release: `supply.py sbom FILE` writes the CycloneDX bill of materials of requirements/run.txt
and of what the pages are bundled from, and fails where a locked package or a hash is missing in it.
"""

import base64
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RUN = ROOT / "requirements/run.txt"
# What was bundled, each with its version and licence before its text; and the lock that it was bundled by.
BUNDLED, BUNDLED_LOCK = ROOT / "service/static/vendor/LICENSES.txt", ROOT / ".ci/vendor/package-lock.json"


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


def main(arguments: list[str]) -> int:
    """Run it; the exit code."""
    match arguments:
        case ["sbom", target]:
            return sbom(Path(target))
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
