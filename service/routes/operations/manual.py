"""The manual, where it was built.

Invariant: it is asked for without a key, as it holds no data; and a name leads to a file that was built, or
to none.
"""

from asyncio import to_thread
from collections.abc import Mapping
from functools import lru_cache
from http import HTTPStatus
from pathlib import Path

from aiohttp import web

from service.context import CONTEXT
from service.http.problems import Problem
from service.http.response import Answer, header_lines
from service.openapi import Route, content, parameter
from service.routes.operations.page import FILES, PAGE_FIELDS, TYPES, File, answer_file

_TYPES = {**TYPES, ".png": "image/png", ".woff2": "font/woff2"}
# The form is the search, which leads to a page of the manual.
_POLICY = PAGE_FIELDS["Content-Security-Policy"].replace("form-action 'none'", "form-action 'self'")
_FIELDS = {**PAGE_FIELDS, "Content-Security-Policy": f"{_POLICY}; font-src 'self'"}
# Every build writes it anew, and touches it when its pages are finished: what was read while it was at work
# is read again.
_INDEX = "searchindex.js"
_HOW = "the manual is not here: the image has it, `make docs` in a checkout builds it, and the wheel has none"


@lru_cache(maxsize=1)  # one build: that of now
def _files(folder: Path, built_ns: int) -> Mapping[str, File]:
    """Read the build of the moment `built_ns`: some 6 MB, by path below `folder`."""
    return {
        path.relative_to(folder).as_posix(): File(path.read_bytes(), _TYPES[path.suffix])
        for path in sorted(folder.rglob("*"))
        if path.suffix in _TYPES
    }


async def _built(request: web.Request) -> Mapping[str, File]:
    """Return the files of the build that is there now, none where there is no build."""
    folder = request.app[CONTEXT].settings.manual_dir

    def read() -> Mapping[str, File]:
        try:
            return _files(folder, (folder / _INDEX).stat().st_mtime_ns)
        except OSError:
            return {}

    return await to_thread(read)


@Route(
    *("GET", "/manual", "Operations", content({"type": "string"}, _TYPES[".html"])),
    needs="public",
    operation_id="manual",
)
async def get_manual(request: web.Request) -> web.StreamResponse:
    """The manual; where it is not built, how it is."""
    if not await _built(request):
        return await answer_file(request, FILES["no-manual.html"], PAGE_FIELDS)
    # The links of its pages are relative; so is this one, for a proxy that has the service below a path.
    return Answer(b"", HTTPStatus.PERMANENT_REDIRECT, "", header_lines({"Location": "manual/"}))


@Route(
    "GET",
    "/manual/{page}",
    "Operations",
    {kind: {"schema": {"type": "string"}} for kind in sorted(set(_TYPES.values()))},
    ("not_found",),
    needs="public",
    operation_id="manualPage",
    deep="page",
    parameters=(
        parameter(
            *("page", "path", {"type": "string", "enum": ["index.html"]}),
            "A page of it, or a file of a page",
            required=True,
        ),
    ),
)
async def get_manual_page(request: web.Request) -> web.StreamResponse:
    """A page of the manual; where it is not built, how it is."""
    files, name = await _built(request), request.match_info["page"]
    if name[-1:] in ("", "/"):
        # `how-to/` is the first page of that part.
        name += "index.html"
    if not files and name.endswith(".html"):
        return await answer_file(request, FILES["no-manual.html"], PAGE_FIELDS)
    if not files:
        raise Problem("not_found", _HOW)
    return await answer_file(request, files.get(name), _FIELDS)
