"""What is done to pages that Sphinx has written: no script or style is inside of one, no file there in vain.

Invariant: what tells a service of a build, the time of `searchindex.js`, changes when all pages are finished.
Pages that it has read before, half of them perhaps, it then reads again.
"""

import os
import re
import time
from hashlib import sha256
from pathlib import Path

# A script without a source, unless it is data; a style. Neither is inside of another.
_INLINE = re.compile(r"<(script|style)(?![^>]*\s(?:src|type)=)[^>]*>(.*?)</\1>", re.S)


def finish(out: Path) -> None:
    """Finish the pages of the manual in `out`."""
    # The theme's own: what its pages are made of, and maps of its scripts for who changes these.
    for rest in (out / "_static/webpack-macros.html", *out.rglob("*.map")):
        rest.unlink()
    for page in out.rglob("*.html"):
        move_to_files(page, out)
    index = out / "searchindex.js"
    # The clock of files stands still for some milliseconds.
    now_ns = max(time.time_ns(), index.stat().st_mtime_ns + 1)
    os.utime(index, ns=(now_ns, now_ns))


def move_to_files(page: Path, out: Path) -> None:
    """Move the scripts and styles inside `page`, of the manual in `out`, to files of their own."""
    up = "../" * (len(page.relative_to(out).parts) - 1)

    def moved(match: re.Match[str]) -> str:
        kind, text = match.groups()
        name = (
            f"_static/inline/{sha256(text.encode()).hexdigest()[:16]}.{'js' if kind == 'script' else 'css'}"
        )
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text(text, "utf-8")
        if kind == "script":
            return f'<script src="{up}{name}"></script>'
        return f'<link rel="stylesheet" href="{up}{name}">'

    page.write_text(_INLINE.sub(moved, page.read_text("utf-8")), "utf-8")
