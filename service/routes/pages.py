"""The pages that people see, and the manual, where it was built.

Invariant: they load nothing from any other address, and the browser is told to hold them to it. They are
asked for without a key, as they hold no data; and a name leads to a file that is one of theirs, or to none.
"""

import gzip
from asyncio import to_thread
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from hashlib import sha256
from http import HTTPStatus
from pathlib import Path

from aiohttp import hdrs, web

from service.context import CONTEXT
from service.http.problems import Problem
from service.http.response import Answer, header_lines
from service.openapi import Route, content, parameter

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
    ".png": "image/png",
    ".woff2": "font/woff2",
}
_PAGE_FIELDS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    # Files have no version in their names: a browser asks each time whether there is a newer one.
    "Cache-Control": "no-cache",
    "Vary": "Accept-Encoding",
}
# The form of the manual is the search, which leads to a page of it.
_POLICY = _PAGE_FIELDS["Content-Security-Policy"].replace("form-action 'none'", "form-action 'self'")
_MANUAL_FIELDS = {**_PAGE_FIELDS, "Content-Security-Policy": f"{_POLICY}; font-src 'self'"}
# Every build writes it anew, and touches it when its pages are finished: what was read while it was at work
# is read again.
_INDEX = "searchindex.js"
_HOW = "the manual is not here: the image has it, `make docs` in a checkout builds it, and the wheel has none"


@dataclass(frozen=True)
class File:
    """A file of the pages."""

    body: bytes
    kind: str
    etag: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "etag", f'"{sha256(self.body).hexdigest()[:32]}"')

    @cached_property
    def packed(self) -> bytes:
        """The body in gzip."""
        return gzip.compress(self.body, 9)


def _files_of(folder: Path) -> Mapping[str, File]:
    """Read the files of a folder, by path below it."""
    return {
        path.relative_to(folder).as_posix(): File(path.read_bytes(), _TYPES[path.suffix])
        for path in sorted(folder.rglob("*"))
        if path.suffix in _TYPES
    }


# Read once: a page that is there when the service starts is there until it ends.
_FILES = _files_of(Path(__file__).parents[1] / "static")


async def _answer(
    request: web.Request, file: File | None, fields: Mapping[str, str] = _PAGE_FIELDS
) -> Answer:
    """Answer with `file` under the headers `fields`, as little as the browser needs. Raises HTTPNotFound
    where there is none.
    """
    if file is None:
        raise web.HTTPNotFound
    fields = {**fields, "ETag": file.etag}
    if file.etag in request.headers.get(hdrs.IF_NONE_MATCH, ""):
        return Answer(b"", HTTPStatus.NOT_MODIFIED, "", header_lines(fields))
    if "gzip" not in request.headers.get(hdrs.ACCEPT_ENCODING, ""):
        return Answer(file.body, content_type=file.kind, fields=header_lines(fields))
    # The largest take some 0.1 s, once.
    packed = await to_thread(getattr, file, "packed")
    fields["Content-Encoding"] = "gzip"
    return Answer(packed, content_type=file.kind, fields=header_lines(fields))


_HTML = content({"type": "string"}, _TYPES[".html"])
_ANY = {kind: {"schema": {"type": "string"}} for kind in sorted({file.kind for file in _FILES.values()})}


@Route("GET", "/", "Operations", _HTML, needs="public", operation_id="page")
async def get_page(request: web.Request) -> web.StreamResponse:
    """The dashboard."""
    return await _answer(request, _FILES.get("index.html"))


@Route("GET", "/docs", "Operations", _HTML, needs="public", operation_id="docsPage")
async def get_docs(request: web.Request) -> web.StreamResponse:
    """This description, to be read and tried."""
    return await _answer(request, _FILES.get("docs.html"))


@Route(
    *("GET", "/static/{name}", "Operations", _ANY, ("not_found",)),
    needs="public",
    operation_id="pageFile",
    parameters=(
        parameter(
            *("name", "path", {"type": "string", "enum": [name for name in _FILES if "/" not in name]}),
            "The file",
            required=True,
        ),
    ),
)
async def get_static(request: web.Request) -> web.StreamResponse:
    """A file of the pages."""
    return await _answer(request, _FILES.get(request.match_info["name"]))


_FOLDERS = sorted({name.partition("/")[0] for name in _FILES if "/" in name})
_INSIDE = sorted({name.partition("/")[2] for name in _FILES if "/" in name})


@Route(
    *("GET", "/static/{folder}/{name}", "Operations", _ANY, ("not_found",)),
    needs="public",
    operation_id="pageFolderFile",
    parameters=(
        parameter("folder", "path", {"type": "string", "enum": _FOLDERS}, "The folder", required=True),
        parameter("name", "path", {"type": "string", "enum": _INSIDE}, "The file", required=True),
    ),
)
async def get_static_of_folder(request: web.Request) -> web.StreamResponse:
    """A file of a part of the pages."""
    name = f"{request.match_info['folder']}/{request.match_info['name']}"
    return await _answer(request, _FILES.get(name))


@lru_cache(maxsize=1)  # one build: that of now
def _files_built(folder: Path, built_ns: int) -> Mapping[str, File]:
    """Read the build of the moment `built_ns`: some 6 MB."""
    return _files_of(folder)


async def _built(request: web.Request) -> Mapping[str, File]:
    """Return the files of the build that is there now, none where there is no build."""
    folder = request.app[CONTEXT].settings.manual_dir

    def read() -> Mapping[str, File]:
        try:
            return _files_built(folder, (folder / _INDEX).stat().st_mtime_ns)
        except OSError:
            return {}

    return await to_thread(read)


@Route("GET", "/manual", "Operations", _HTML, needs="public", operation_id="manual")
async def get_manual(request: web.Request) -> web.StreamResponse:
    """The manual; where it is not built, how it is."""
    if not await _built(request):
        return await _answer(request, _FILES["no-manual.html"])
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
        return await _answer(request, _FILES["no-manual.html"])
    if not files:
        raise Problem("not_found", _HOW)
    return await _answer(request, files.get(name), _MANUAL_FIELDS)
