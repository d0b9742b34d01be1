"""The pages that people see.

Invariant: they load nothing from any other address, and the browser is told to hold them to it.
"""

import gzip
from asyncio import to_thread
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from http import HTTPStatus
from pathlib import Path

from aiohttp import hdrs, web

from service.http.response import Answer, header_lines
from service.openapi import Route, content, parameter

_FOLDER = Path(__file__).parents[2] / "static"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
}
PAGE_FIELDS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    # Files have no version in their names: a browser asks each time whether there is a newer one.
    "Cache-Control": "no-cache",
    "Vary": "Accept-Encoding",
}


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


# By name, or by folder and name. Read once: a page that is there when the service starts is there until it
# ends.
FILES = {
    path.relative_to(_FOLDER).as_posix(): File(path.read_bytes(), TYPES[path.suffix])
    for path in sorted(_FOLDER.rglob("*"))
    if path.suffix in TYPES
}


async def _answer(request: web.Request, name: str) -> Answer:
    return await answer_file(request, FILES.get(name), PAGE_FIELDS)


async def answer_file(request: web.Request, file: File | None, fields: Mapping[str, str]) -> Answer:
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


_HTML = content({"type": "string"}, TYPES[".html"])
_ANY = {kind: {"schema": {"type": "string"}} for kind in sorted({file.kind for file in FILES.values()})}


@Route("GET", "/", "Operations", _HTML, needs="public", operation_id="page")
async def get_page(request: web.Request) -> web.StreamResponse:
    """The dashboard."""
    return await _answer(request, "index.html")


@Route("GET", "/docs", "Operations", _HTML, needs="public", operation_id="docsPage")
async def get_docs(request: web.Request) -> web.StreamResponse:
    """This description, to be read and tried."""
    return await _answer(request, "docs.html")


@Route(
    *("GET", "/static/{name}", "Operations", _ANY, ("not_found",)),
    needs="public",
    operation_id="pageFile",
    parameters=(
        parameter(
            *("name", "path", {"type": "string", "enum": [name for name in FILES if "/" not in name]}),
            "The file",
            required=True,
        ),
    ),
)
async def get_static(request: web.Request) -> web.StreamResponse:
    """A file of the pages."""
    return await _answer(request, request.match_info["name"])


_FOLDERS = sorted({name.partition("/")[0] for name in FILES if "/" in name})
_INSIDE = sorted({name.partition("/")[2] for name in FILES if "/" in name})


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
    return await _answer(request, f"{request.match_info['folder']}/{request.match_info['name']}")
