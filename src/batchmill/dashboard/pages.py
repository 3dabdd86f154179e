"""The dashboard's files as routes: each with its type, an ETag, and headers that let a page run no code but ours.

The page is at `/`; what it loads lies below `PREFIX`. No file holds a fact of the server's, so none needs a key.
"""

import hashlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from starlette.requests import Request
from starlette.responses import Response

PREFIX = "/dashboard/"
_STATIC = Path(__file__).parent / "static"
_PAGE = "index.html"
_TYPES = MappingProxyType(
    {
        ".css": "text/css; charset=utf-8",
        ".html": "text/html; charset=utf-8",
        ".js": "text/javascript; charset=utf-8",
        ".svg": "image/svg+xml",
    }
)
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "font-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
HEADERS: Mapping[str, str] = MappingProxyType(
    {
        "Cache-Control": "no-cache",  # asked again each time: a new version is never mixed with an old one's files
        "Content-Security-Policy": _POLICY,
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=()",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """A file of the dashboard, held in memory."""

    content: bytes
    media_type: str
    etag: str

    async def answer(self, request: Request) -> Response:
        """Answer with the file, or with 304 if the browser has it."""
        headers = {"ETag": self.etag, **HEADERS}
        if self.etag in (tag.strip() for tag in request.headers.get("if-none-match", "").split(",")):
            return Response(status_code=304, headers=headers)
        return Response(self.content, media_type=self.media_type, headers=headers)


def dashboard_pages() -> Mapping[str, Callable[[Request], Awaitable[Response]]]:
    """Return what answers for each path: every file of the dashboard, all together some hundred kilobytes."""
    files = {path.relative_to(_STATIC).as_posix(): _read(path) for path in _STATIC.rglob("*") if path.suffix in _TYPES}
    return {"/" if name == _PAGE else f"{PREFIX}{name}": file.answer for name, file in sorted(files.items())}


def _read(path: Path) -> File:
    content = path.read_bytes()
    etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    return File(content=content, media_type=_TYPES[path.suffix], etag=etag)
