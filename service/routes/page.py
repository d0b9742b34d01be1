"""The pages that people see.

Invariant: they load nothing from any other address, and the browser is told to hold them to it.
"""

from pathlib import Path

from aiohttp import web

from service.http.response import Answer, header_lines
from service.openapi import Route, content, parameter

_FOLDER = Path(__file__).parent.parent / "static"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_FIELDS = header_lines(
    {
        "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        # Files have no version in their names: a browser asks each time whether there is a newer one.
        "Cache-Control": "no-cache",
    }
)
# Read once: a page that is there when the service starts is there until it ends.
FILES = {
    path.name: (path.read_bytes(), _TYPES[path.suffix])
    for path in sorted(_FOLDER.iterdir())
    if path.suffix in _TYPES
}


def _file(name: str) -> Answer:
    body, kind = FILES[name]
    return Answer(body, content_type=kind, fields=_FIELDS)


_HTML = content({"type": "string"}, _TYPES[".html"])


@Route("GET", "/", "Operations", _HTML, needs="public")
async def get_page(request: web.Request) -> web.StreamResponse:
    """What is live, shown."""
    return _file("index.html")


@Route("GET", "/docs", "Operations", _HTML, needs="public")
async def get_docs(request: web.Request) -> web.StreamResponse:
    """This description, shown."""
    return _file("docs.html")


@Route(
    *("GET", "/static/{name}", "Operations"),
    {kind: {"schema": {"type": "string"}} for kind in sorted({kind for _, kind in FILES.values()})},
    ("not_found",),
    needs="public",
    parameters=(
        parameter("name", "path", {"type": "string", "enum": sorted(FILES)}, "The file", required=True),
    ),
)
async def get_static(request: web.Request) -> web.StreamResponse:
    """A file of the pages."""
    name = request.match_info["name"]
    if name not in FILES:
        raise web.HTTPNotFound
    return _file(name)
