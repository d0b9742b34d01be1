"""How the manual is made of the pages in this folder: `make docs`.

Invariant: what is built asks no other address for anything, and has no script or style inside a page, so that
it holds under the content security policy of the service.
"""

import os
import re
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

sys.path.insert(0, str(Path(__file__).with_name("reference")))
from calls_page import calls_page
from finished_pages import finish

ROOT = Path(__file__).resolve().parents[1]
project = "Foldin"
author = "the authors of Foldin"
version = release = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]

extensions = ["myst_nb"]
myst_heading_anchors = 4
# Notebooks are run by each build, in a folder of their own, and one that fails is an error. They share
# a module, and the client, which the wheel of Foldin has under another name.
_modules = Path(__file__).with_name("notebooks"), ROOT / "clients/python"
os.environ["PYTHONPATH"] = os.pathsep.join(map(str, _modules))
# Kernels have a profile of their own: they read nothing of who builds, and do not warn of their ports on
# loopback.
_profile = Path(tempfile.mkdtemp()) / "profile_default"
_profile.mkdir()
(_profile / "ipython_kernel_config.py").write_text("c.IPKernelApp.log_level = 40\n", "utf-8")
os.environ["IPYTHONDIR"] = str(_profile.parent)
nb_execution_mode = "force"
nb_execution_in_temp = True
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_merge_streams = True

html_theme = "pydata_sphinx_theme"
html_title = f"Foldin {release}"
html_favicon = "../service/static/icon.svg"
html_context = {"default_mode": "auto"}
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {
    "navbar_align": "left",
    "navigation_with_keys": False,
    "secondary_sidebar_items": ["page-toc"],
    "show_nav_level": 1,
    "show_prev_next": True,
    "footer_start": [],
    "footer_end": [],
}

# Documents at the root of the checkout, which are pages of the part `project`.
OUTSIDE = ("README", "CONTRIBUTING", "CHANGELOG")


def _read(app: Sphinx, page: str, source: list[str]) -> None:
    """Read what a page of the part `project`, or that of the calls, stands for; lead links there."""
    folder, _, name = page.rpartition("/")
    if folder == "project" and name.upper() in OUTSIDE:
        text = (ROOT / f"{name.upper()}.md").read_text("utf-8")
        source[0] = re.sub(r"\]\((?:docs/|(?=\w+\.md))", "](/", text)
    if page == "reference/calls":
        source[0] = calls_page()
    for outside in OUTSIDE:
        source[0] = re.sub(rf"\]\((?:\.\./|/){outside}\.md", f"](/project/{outside.lower()}.md", source[0])


def _finish(app: Sphinx, exception: Exception | None) -> None:
    if exception is None:
        finish(Path(app.outdir))


def setup(app: Sphinx) -> dict[str, Any]:
    """Register what is done beside Sphinx's own."""
    app.connect("source-read", _read)
    app.connect("build-finished", _finish)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
