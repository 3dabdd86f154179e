"""The routes of Files: upload, list, retrieve, delete, content."""

import asyncio
from collections.abc import AsyncIterator
from typing import BinaryIO
from urllib.parse import quote

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse

from batchmill.api.answer import json_answer, query_after, query_choice, query_limit
from batchmill.api.upload import Upload, receive_upload
from batchmill.blobs.blobs import Blobs
from batchmill.clock import Clock
from batchmill.spec import errors
from batchmill.spec.ids import mint_id
from batchmill.spec.limits import Limits
from batchmill.spec.objects import FileObject, file_deleted, list_page
from batchmill.store.blob import doom_blob, drop_refs, insert_writing, publish_blob
from batchmill.store.database import Database, Transaction
from batchmill.store.file import File, count_files, delete_file, find_file, insert_file, list_files

_CHUNK = 1 << 20


def file_routes(*, database: Database, blobs: Blobs, clock: Clock, limits: Limits) -> APIRouter:
    """Return the five routes of contract a.1 to a.5."""
    router = APIRouter(prefix="/v1/files", tags=["files"])

    async def visible(request: Request, file_id: str) -> File:
        mine, now = request.state.organisation_id, int(clock.now())
        found = await database.read(lambda tx: find_file(tx, organisation_id=mine, file_id=file_id, now=now))
        if found is None:
            raise errors.not_found("file")
        return found

    @router.post("")
    async def upload(request: Request) -> Response:
        """Upload an input file."""
        mine, now = request.state.organisation_id, int(clock.now())
        key = mint_id("upload", clock.now())
        await database.write(lambda tx: insert_writing(tx, key=key, organisation_id=mine, now=now))
        writer = blobs.writer(key)
        try:
            received = await receive_upload(
                stream=request.stream(),
                content_type=request.headers.get("content-type", ""),
                writer=writer,
                limits=limits,
            )
            added = _file(mine, key, received, now=clock.now())
            await database.write(lambda tx: _publish(tx, added, received, limits))
        except BaseException:
            writer.discard()
            await database.write(lambda tx: doom_blob(tx, key=key))
            raise
        return json_answer(added.object.wire())

    @router.get("")
    async def list_(request: Request) -> Response:
        """List the organisation's files."""
        mine, now = request.state.organisation_id, int(clock.now())
        limit = query_limit(request, default=limits.files_page, most=limits.max_files_page)
        after = query_after(request, prefix="file")
        ascending = query_choice(request, "order", ("asc", "desc"), default="desc") == "asc"
        purpose = request.query_params.get("purpose")
        found = await database.read(
            lambda tx: list_files(
                tx,
                organisation_id=mine,
                now=now,
                purpose=purpose,
                after=after,
                ascending=ascending,
                limit=limit + 1,
            )
        )
        return json_answer(list_page([f.object.wire() for f in found[:limit]], has_more=len(found) > limit))

    @router.get("/{file_id}")
    async def retrieve(request: Request, file_id: str) -> Response:
        """Return a file's facts."""
        return json_answer((await visible(request, file_id)).object.wire())

    @router.delete("/{file_id}")
    async def delete(request: Request, file_id: str) -> Response:
        """Delete a file; a live batch keeps its own reference to the bytes (contract, choice 8)."""
        mine = request.state.organisation_id

        def statements(tx: Transaction) -> bool:
            key = delete_file(tx, organisation_id=mine, file_id=file_id)
            if key is not None:
                drop_refs(tx, key=key)
            return key is not None

        await visible(request, file_id)
        if not await database.write(statements):
            raise errors.not_found("file")
        return json_answer(file_deleted(file_id))

    @router.get("/{file_id}/content")
    async def content(request: Request, file_id: str) -> Response:
        """Return a file's bytes, as they were uploaded or written (contract a.5)."""
        found = await visible(request, file_id)
        stream = await asyncio.to_thread(blobs.open, found.blob_key)
        headers = {
            "Content-Length": str(found.object.bytes),
            "Content-Disposition": f"attachment; filename*=UTF-8''{quote(found.object.filename, safe='')}",
        }
        return StreamingResponse(_chunks(stream), media_type="text/plain; charset=utf-8", headers=headers)

    return router


def _file(organisation_id: str, key: str, received: Upload, *, now: float) -> File:
    lasts = received.expires_after
    return File(
        organisation_id=organisation_id,
        blob_key=key,
        object=FileObject(
            id=mint_id("file", now),
            bytes=received.written.bytes,
            created_at=int(now),
            filename=received.filename,
            purpose=received.purpose,
            expires_at=None if lasts is None else int(now) + lasts,
        ),
    )


def _publish(tx: Transaction, added: File, received: Upload, limits: Limits) -> None:
    """Add the File and publish its bytes, if the organisation's quotas allow it."""
    count, stored = count_files(tx, organisation_id=added.organisation_id, purpose=added.object.purpose)
    if count >= limits.max_files:
        raise errors.invalid_request(
            f"There are {count} files already; at most {limits.max_files} are allowed.", "file"
        )
    if limits.max_stored_bytes is not None and stored + added.object.bytes > limits.max_stored_bytes:
        raise errors.too_big("The files of your organisation together", limits.max_stored_bytes, "file")
    publish_blob(tx, key=added.blob_key, size=received.written.bytes, sha256=received.written.sha256)
    insert_file(tx, added)


async def _chunks(stream: BinaryIO) -> AsyncIterator[bytes]:
    with stream:
        while chunk := await asyncio.to_thread(stream.read, _CHUNK):
            yield chunk
