"""A File's bytes as an answer: whole, one range of them, or their headers alone."""

import asyncio
from collections.abc import AsyncIterator
from typing import BinaryIO
from urllib.parse import quote

from fastapi import Request, Response
from fastapi.responses import RedirectResponse, StreamingResponse
from starlette.types import Receive, Scope, Send

from batchmill.blobs.blobs import Blobs
from batchmill.spec.objects import FileObject
from batchmill.spec.ranges import parse_range
from batchmill.store.file import File

_CHUNK = 1 << 20
_LINK_SECONDS = 300  # it is followed at once; a download that has begun goes on
_MEDIA_TYPE = "text/plain; charset=utf-8"  # the charset keeps clients from guessing at Chinese text (contract a.5)


async def download(request: Request, found: File, *, blobs: Blobs, redirect: bool) -> Response:
    """Return the answer to a GET or HEAD of a File's content (contract a.5).

    HEAD pays no heed to `Range`, which RFC 9110 (14.2) defines for GET alone. With `redirect` a GET is sent on to where
    the bytes are, if they have an address of their own; clients leave the key out there and repeat the range.

    Raises:
        ApiError: 416, no byte of the range is there.
        BlobMissing: the bytes are gone.
    """
    facts = found.object
    if request.method == "HEAD":
        return Response(headers=_headers(facts, length=facts.bytes), media_type=_MEDIA_TYPE)
    if redirect and (url := await asyncio.to_thread(_presign, blobs, found)):
        return RedirectResponse(url, status_code=302, headers={"Cache-Control": "no-store"})
    asked = _asked(request, facts)
    stream = await asyncio.to_thread(blobs.open, found.blob_key)
    return _Download(stream, facts, asked)


def _presign(blobs: Blobs, found: File) -> str | None:
    disposition = _disposition(found.object.filename)
    return blobs.presign(found.blob_key, seconds=_LINK_SECONDS, disposition=disposition, media_type=_MEDIA_TYPE)


def _asked(request: Request, facts: FileObject) -> range | None:
    """Return the range asked for; an `If-Range` that is not our ETag asks for the whole (RFC 9110, 13.1.5).

    So does a `Range` that stands twice, which is a list of ranges.
    """
    if len(request.headers.getlist("range")) > 1:
        return None
    if request.headers.get("if-range", _etag(facts)) != _etag(facts):
        return None
    return parse_range(request.headers.get("range", ""), size=facts.bytes)


class _Download(StreamingResponse):
    """The bytes of a File, or a range of them; however the answer ends, the stream is closed."""

    def __init__(self, stream: BinaryIO, facts: FileObject, asked: range | None) -> None:
        sent = range(facts.bytes) if asked is None else asked
        headers = _headers(facts, length=len(sent))
        if asked is not None:
            headers["Content-Range"] = f"bytes {asked.start}-{asked.stop - 1}/{facts.bytes}"
        super().__init__(
            _chunks(stream, sent),
            status_code=200 if asked is None else 206,
            media_type=_MEDIA_TYPE,
            headers=headers,
        )
        self._stream = stream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._stream:
            await super().__call__(scope, receive, send)


async def _chunks(stream: BinaryIO, sent: range) -> AsyncIterator[bytes]:
    stream.seek(sent.start)
    left = len(sent)
    while left and (chunk := await asyncio.to_thread(stream.read, min(left, _CHUNK))):
        left -= len(chunk)
        yield chunk


def _headers(facts: FileObject, *, length: int) -> dict[str, str]:
    return {
        "Content-Length": str(length),
        "Content-Disposition": _disposition(facts.filename),
        "Accept-Ranges": "bytes",
        "ETag": _etag(facts),
    }


def _etag(facts: FileObject) -> str:
    """Return the validator: the id, since a File's bytes never change."""
    return f'"{facts.id}"'


def _disposition(filename: str) -> str:
    """Return the header that names a download: for old clients in plain ASCII, for all others in full (RFC 6266)."""
    name = filename.replace("/", "_").replace("\\", "_")
    plain = "".join(c if c.isascii() and c not in '"%' else "_" for c in name)
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}"
