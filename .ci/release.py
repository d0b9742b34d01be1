"""Makes a release of the checkout: `release.py VERSION`, what `make release VERSION=1.2.3` does.

Invariant: all is checked before anything is written, and what fails later leaves the files as they were. Then
the version is in pyproject.toml, those of the clients too, and Dockerfile, and what was unreleased stands
under it, committed and tagged; archives of sources, wheels and the package for npm are in dist/. Nothing is
pushed. What comes before and after: CONTRIBUTING.md.
"""

import datetime as dt
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VERSION = re.compile(r"(\d+)\.(\d+)\.(\d+)")
HEADING = re.compile(r"^## (\d+\.\d+\.\d+) - \d{4}-\d\d-\d\d$", re.M)
KINDS = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
CHANGES, PROJECT, IMAGE = "CHANGELOG.md", "pyproject.toml", "Dockerfile"
# Distributions of their own, of the same version.
CLIENT, PACKAGE = "clients/python", "clients/javascript/package.json"


class NotReleasedError(Exception):
    """Why there is no release, in a line."""


def wrong_changes(text: str) -> list[str]:
    """What is wrong with a changelog, one line each."""
    headings = re.findall(r"^## (.*)$", text, re.M)
    found = [] if headings[:1] == ["Unreleased"] else ["the first heading is not Unreleased"]
    released = HEADING.findall(text)
    found += [
        f"{each}: neither Unreleased nor VERSION - DATE"
        for each in headings[1:]
        if not HEADING.match(f"## {each}")
    ]
    ordered = sorted(set(released), key=numbers, reverse=True)
    found += [] if released == ordered else ["the versions are not in order, the newest first"]
    for section in re.split(r"^## ", text, flags=re.M)[1:]:
        title = section.partition("\n")[0]
        kinds = re.findall(r"^### (.*)$", section, re.M)
        found += [
            f"{title}: {kind} is not of {', '.join(sorted(KINDS))}" for kind in kinds if kind not in KINDS
        ]
        found += [
            f"{title}: {kind} stands twice"
            for kind in sorted({each for each in kinds if kinds.count(each) > 1})
        ]
        parts = re.split(r"^### .*$", section, flags=re.M)[1:]
        found += [
            f"{title}: {kind} is empty" for kind, part in zip(kinds, parts, strict=True) if not part.strip()
        ]
    return found


def numbers(version: str) -> tuple[int, ...]:
    """The numbers of a version, to compare."""
    return tuple(map(int, version.split(".")))


def released(text: str, version: str, day: str) -> str:
    """The changelog with what is unreleased under a version, and room above. Raises NotReleasedError."""
    if wrong := wrong_changes(text):
        raise NotReleasedError(f"{CHANGES}: {wrong[0]}")
    before = HEADING.findall(text)
    if before and numbers(version) <= numbers(before[0]):
        raise NotReleasedError(f"{version} is not after {before[0]}")
    unreleased = text.partition("## Unreleased\n")[2].partition("\n## ")[0]
    if not re.search(r"^- ", unreleased, re.M):
        raise NotReleasedError(f"{CHANGES}: nothing is unreleased")
    return text.replace("## Unreleased\n", f"## Unreleased\n\n## {version} - {day}\n", 1)


def run(*command: str) -> str:
    """What a command prints. Raises NotReleasedError with its last line."""
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)  # noqa: S603 - ours
    except FileNotFoundError as exc:
        raise NotReleasedError(f"{command[0]} is not here: install it") from exc
    if done.returncode:
        lines = (done.stderr.strip() or done.stdout.strip() or "it said nothing").splitlines()
        raise NotReleasedError(f"{' '.join(command)}: {lines[-1]}")
    return done.stdout.strip()


def release(version: str) -> None:
    """Make the release. Raises NotReleasedError."""
    if not VERSION.fullmatch(version):
        raise NotReleasedError(f"{version!r} is no version: make release VERSION=1.2.3")
    if changed := run("git", "status", "--porcelain"):
        raise NotReleasedError(f"the tree is not clean: {changed.splitlines()[0]}")
    tag = f"v{version}"
    if run("git", "tag", "--list", tag):
        raise NotReleasedError(f"there is a tag {tag} already")
    day = dt.datetime.now(dt.UTC).date().isoformat()
    written = {CHANGES: released((ROOT / CHANGES).read_text("utf-8"), version, day)}
    for name, line, new in (
        (PROJECT, r'^version = "[^"]*"$', f'version = "{version}"'),
        (f"{CLIENT}/{PROJECT}", r'^version = "[^"]*"$', f'version = "{version}"'),
        (PACKAGE, r'^  "version": "[^"]*",$', f'  "version": "{version}",'),
        (IMAGE, r"^ARG VERSION=.*$", f"ARG VERSION={version}"),
    ):
        text, count = re.subn(line, new, (ROOT / name).read_text("utf-8"), flags=re.M)
        if count != 1:
            raise NotReleasedError(f"{name} has {count} lines with a version")
        written[name] = text
    try:
        for name, text in written.items():
            (ROOT / name).write_text(text, "utf-8")
        for folder, built in ((".", f"foldin-{version}"), (CLIENT, f"foldin_client-{version}")):
            run(sys.executable, "-m", "build", "--no-isolation", "--outdir", "dist", folder)
            for file in (f"{built}.tar.gz", f"{built}-py3-none-any.whl"):
                if not (ROOT / "dist" / file).is_file():
                    raise NotReleasedError(f"the build made no {file}")
        run("npm", "pack", "--silent", f"./{Path(PACKAGE).parent}", "--pack-destination", "dist")
        run("git", "commit", "--quiet", "--message", f"release: {version}", "--", *written)
        run("git", "tag", "--annotate", tag, "--message", f"Foldin {version}")
    except BaseException:  # Ctrl-C and a full disk, too
        # To what was committed last: the files as they were, or as they are released where the tag failed.
        run("git", "checkout", "--quiet", "HEAD", "--", *written)
        raise
    print(
        f"{tag} is committed and tagged, and dist/ has what is published. Not pushed. Next: CONTRIBUTING.md."
    )


if __name__ == "__main__":
    try:
        release(*sys.argv[1:2] or [""])
    except NotReleasedError as reason:
        sys.exit(f"no release: {reason}")
