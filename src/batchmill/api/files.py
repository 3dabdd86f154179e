"""The routes of Files: upload, list, retrieve, delete, content."""

import msgspec
from fastapi import APIRouter, Depends, Request, Response

from batchmill.api.answer import json_answer, query_after, query_choice, query_limit, query_word
from batchmill.api.download import download
from batchmill.api.maker import ask_for_room, begin, give_up
from batchmill.api.order import new_file, publish_file
from batchmill.api.replay import Made, Replays
from batchmill.api.reserve import write_on_reserve
from batchmill.api.slots import Slots
from batchmill.api.upload import Upload, form_boundary, receive_upload, refuse_long_form
from batchmill.blobs.blobs import BlobMissing, Blobs
from batchmill.blobs.space import Room
from batchmill.clock import Clock
from batchmill.spec import errors
from batchmill.spec.ids import mint_id
from batchmill.spec.limits import Limits
from batchmill.spec.objects import file_deleted, list_page
from batchmill.store.blob import doom_blob, drop_refs
from batchmill.store.database import Database, Transaction
from batchmill.store.file import File, delete_file, find_file, list_files
from batchmill.store.organisation import Allowance
from batchmill.store.replay import note_arrival


def file_routes(
    *,
    database: Database,
    blobs: Blobs,
    room: Room,
    clock: Clock,
    limits: Limits,
    replays: Replays,
    retention: int | None,
    redirect: bool,
) -> APIRouter:
    """Return the routes of contract a.1 to a.5; a file without a time of its own lasts `retention` seconds.

    `redirect`: see `download`.
    """
    slots = Slots(each=limits.max_uploads_per_key, most=limits.max_uploads)
    router = APIRouter(prefix="/v1/files", tags=["files"], dependencies=[Depends(_only_one_version)])

    async def find(request: Request, file_id: str) -> File:
        mine, now = request.state.organisation_id, int(clock.now())
        found = await database.read(lambda tx: _visible(tx, mine, file_id, now=now))
        await replays.arrived(request, file_id)
        return found

    @router.post("")
    async def upload(request: Request) -> Response:
        """Upload an input file: its bytes are kept as they are, and its lines are checked by the batch that uses it."""
        call, key = replays.call(request, route="files"), mint_id("upload", clock.now())
        boundary = form_boundary(request.headers.get("content-type", ""))
        refuse_long_form(int(request.headers.get("content-length", "0")), limits)  # the server took it for a number
        with slots.one(call.caller):
            await ask_for_room(room)  # before a byte is read
            await database.write(lambda tx: begin(tx, replays, call, key, now=int(clock.now())))
            try:
                stream = replays.renewing(call, request.stream())
                received = await receive_upload(stream=stream, boundary=boundary, blobs=blobs, key=key, limits=limits)
                added = _file(call.organisation_id, key, received, now=clock.now(), retention=retention)
                answer = await replays.once(
                    request,
                    call=call,
                    fingerprint=received.fingerprint(),
                    make=lambda tx: _publish(tx, added, received, limits, request.state.allowance),
                )
            except BaseException:
                await database.write(lambda tx: give_up(tx, call, key))
                raise
        if answer.replayed:  # these bytes are the first File's bytes again
            await database.write(lambda tx: doom_blob(tx, key=key))
        return answer.response()

    @router.get("")
    async def list_(request: Request) -> Response:
        """List the organisation's files, newest first; `limit`, `after`, `order` and `purpose` as in the query."""
        mine, now = request.state.organisation_id, int(clock.now())
        limit = query_limit(request, default=limits.files_page, most=limits.max_files_page)
        after = query_after(request, prefix="file")
        ascending = query_choice(request, "order", ("asc", "desc"), default="desc") == "asc"
        purpose = query_word(request, "purpose")
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
        return json_answer((await find(request, file_id)).object.wire())

    @router.delete("/{file_id}")
    async def delete(request: Request, file_id: str) -> Response:
        """Delete a file; a live batch keeps its own reference to the bytes (contract, choice 8)."""
        mine, caller, now = request.state.organisation_id, request.state.caller, int(clock.now())
        await write_on_reserve(database, room, lambda tx: _delete(tx, mine, caller, file_id, now=now))
        return json_answer(file_deleted(file_id))

    @router.head("/{file_id}/content")
    @router.get("/{file_id}/content")
    async def content(request: Request, file_id: str) -> Response:
        """Return a file's bytes, as they were uploaded or written (contract a.5), or one `Range` of them.

        `redirect=false`: from here in any case, for a page whose policy knows no other host.
        """
        elsewhere = query_choice(request, "redirect", ("true", "false"), default="true") == "true"
        found = await find(request, file_id)
        try:
            return await download(request, found, blobs=blobs, redirect=redirect and elsewhere)
        except BlobMissing:
            await find(request, file_id)  # deleted since: a 404, and no fault of ours
            raise

    return router


async def _only_one_version(request: Request) -> None:
    """Refuse any named version: only the shape without one is spoken here (contract a.0, g-13)."""
    if "kimi-api-version" in request.headers:
        raise errors.invalid_value("kimi-api-version", "Leave the header 'kimi-api-version' out: there is one version.")


def _file(organisation_id: str, key: str, received: Upload, *, now: float, retention: int | None) -> File:
    return new_file(
        organisation_id=organisation_id,
        key=key,
        filename=received.filename,
        size=received.written.bytes,
        now=now,
        lasts=retention if received.expires_after is None else received.expires_after,
    )


def _publish(tx: Transaction, added: File, received: Upload, limits: Limits, allowance: Allowance) -> Made:
    publish_file(tx, added, received.written, limits=limits, allowance=allowance)
    return Made(id=added.object.id, answer=msgspec.json.encode(added.object.wire()))


def _visible(tx: Transaction, organisation_id: str, file_id: str, *, now: int) -> File:
    found = find_file(tx, organisation_id=organisation_id, file_id=file_id, now=now)
    if found is None:
        raise errors.not_found("file")
    return found


def _delete(tx: Transaction, organisation_id: str, caller: str, file_id: str, *, now: int) -> None:
    _visible(tx, organisation_id, file_id, now=now)
    key = delete_file(tx, organisation_id=organisation_id, file_id=file_id)
    if key is None:
        raise errors.not_found("file")
    drop_refs(tx, key=key)
    note_arrival(tx, caller=caller, made_id=file_id)
