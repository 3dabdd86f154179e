"""The routes of a batch's Results in the order in which they came, and of the input's lines by custom_id."""

import asyncio
import re
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse

from batchmill.api.answer import query_choice, query_limit, query_word
from batchmill.api.events import Event, Streams, asks_for_events
from batchmill.api.maker import in_thread
from batchmill.api.slots import Slots
from batchmill.blobs.blobs import BlobMissing, Blobs, Span
from batchmill.clock import Clock
from batchmill.ledger.page import Page, Pages, ResultsGone, WrongPosition
from batchmill.ledger.requests import find_requests
from batchmill.spec import errors
from batchmill.spec.cursor import Cursor, parse_cursor
from batchmill.spec.family import Child, Wanted, shown_in_place, still_shown
from batchmill.spec.groups import is_group
from batchmill.spec.limits import Limits
from batchmill.store.batch import Batch, find_batch
from batchmill.store.database import Database, Transaction
from batchmill.store.file import find_file
from batchmill.store.order import as_child, list_family

JSONL = "application/jsonl"
_AT_ONCE = 4 << 20  # bytes of requests
_LOOK_SECONDS = 0.5  # between two looks for what is new
_BOOLEANS = ("false", "true")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """Which Results of which batch a client asks for, from where on, and how many at once."""

    batch_id: str
    start: Cursor
    wanted: Wanted
    limit: int
    merged: bool


def result_routes(
    *,
    database: Database,
    blobs: Blobs,
    pages: Pages,
    streams: Streams,
    clock: Clock,
    limits: Limits,
    scans: Slots,
    stopping: Callable[[], bool],
) -> APIRouter:
    """Return both routes; `stopping` says that this process is to end, which waits for nobody.

    `scans` are the slots of calls that read a whole input.
    """
    router = APIRouter(prefix="/v1/batches", tags=["batches"])

    @router.get("/{batch_id}/results")
    async def results(request: Request, batch_id: str) -> Response:
        """Return results in the order in which they came, from a cursor on; `wait` for some, or `follow` them."""
        wait = _wait(request, most=limits.max_results_wait)
        follow = query_choice(request, "follow", _BOOLEANS, default="false") == "true"
        as_events = follow and asks_for_events(request)
        asked = _asked(request, batch_id, limits, resumes=as_events)
        reader = _Reader(
            database=database, pages=pages, clock=clock, asked=asked, organisation_id=request.state.organisation_id
        )
        until = clock.boot() + wait
        page = await reader.page(asked.start)
        if as_events:
            return streams.events(request, _events(reader.follow(page)))
        if follow:
            return streams.lines(request, _lines(reader.follow(page)), media_type=JSONL, headers={})
        while not (page.lines or page.has_more or page.complete or stopping()) and (left := until - clock.boot()) > 0:
            await clock.sleep(min(left, _LOOK_SECONDS))
            page = await reader.page(page.next)
        told = {
            "x-next-cursor": page.next.text(),
            "x-has-more": _BOOLEANS[page.has_more],
            "x-complete": _BOOLEANS[page.complete],
            "Cache-Control": "no-store",
        }
        return Response(b"".join(text for text, _ in page.lines), media_type=JSONL, headers=told)

    @router.get("/{batch_id}/requests")
    async def requests(request: Request, batch_id: str) -> Response:
        """Return the input's own lines of these custom_ids."""
        ids = request.query_params.getlist("custom_id")
        if not 1 <= len(ids) <= limits.max_requests_asked:
            message = f"Ask for 1 to {limits.max_requests_asked} of them."
            raise errors.invalid_value("custom_id", message)
        mine, now = request.state.organisation_id, int(clock.now())
        find = partial(find_requests, blobs, ids=frozenset(ids), max_line_bytes=limits.max_line_bytes)
        with scans.one(request.state.caller):
            key = await database.read(lambda tx: _input_key(tx, mine, batch_id, now=now))
            try:
                spans = await in_thread(lambda: find(key))
            except BlobMissing:
                await database.read(lambda tx: _input_key(tx, mine, batch_id, now=now))  # deleted since: a 404
                raise
        return StreamingResponse(_texts(blobs, key, spans), media_type=JSONL, headers={"Cache-Control": "no-store"})

    return router


def _input_key(tx: Transaction, organisation_id: str, batch_id: str, *, now: int) -> str:
    """Return the key of a batch's input: the File's bytes, or what the batch itself still has of them."""
    found = find_batch(tx, organisation_id=organisation_id, batch_id=batch_id)
    if found is None:
        raise errors.not_found("batch")
    file = find_file(tx, organisation_id=organisation_id, file_id=found.object.input_file_id, now=now)
    key = file.blob_key if file is not None else found.input_key
    if key is None:
        raise errors.not_found("file")
    return key


async def _texts(blobs: Blobs, key: str, spans: Sequence[Span]) -> AsyncGenerator[bytes, None]:
    """Yield these lines, some at once."""
    some: list[Span] = []
    for at, span in enumerate(spans):
        some.append(span)
        if at == len(spans) - 1 or sum(length for _, length in some) >= _AT_ONCE:
            texts = await asyncio.to_thread(blobs.read_spans, key, some)
            yield b"".join(text + b"\n" for text in texts)
            some = []


@dataclass(frozen=True, slots=True, kw_only=True)
class _Told:
    """A page as it is told: lines, each with the cursor behind it."""

    lines: list[tuple[bytes, Cursor]]
    next: Cursor
    has_more: bool
    complete: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reader:
    """Reads what is asked for, page by page: of one batch, or of it and all that retry it, the oldest first."""

    database: Database
    pages: Pages
    clock: Clock
    asked: _Asked
    organisation_id: str

    async def page(self, start: Cursor) -> _Told:
        """Return a page from a cursor on."""
        family = await self.database.read(self._family)
        at = next((at for at, each in enumerate(family) if each.id == start.batch_id), None)
        if at is None:
            raise errors.invalid_value("after", "'after' is the cursor of another batch.")
        source, wanted = _part(family, at) if self.asked.merged else (start.batch_id, self.asked.wanted)
        told = await self._told(start, source, wanted.within(self.asked.wanted))
        if not told.complete or at == len(family) - 1:
            return told
        return replace(told, next=Cursor(batch_id=family[at + 1].id), has_more=True, complete=False)

    async def follow(self, page: _Told) -> AsyncGenerator[_Told | None, None]:
        """Yield pages as there are some, the last one when there will be no more, and None at each look in vain."""
        while True:
            yield page if page.lines or page.complete else None
            if page.complete:
                return
            if not page.has_more:
                await self.clock.sleep(_LOOK_SECONDS)
            page = await self.page(page.next)

    def _family(self, tx: Transaction) -> Sequence[Batch]:
        found = find_batch(tx, organisation_id=self.organisation_id, batch_id=self.asked.batch_id)
        if found is None:
            raise errors.not_found("batch")
        return list_family(tx, parent=found) if self.asked.merged else [found]

    async def _told(self, start: Cursor, source: str, wanted: Wanted) -> _Told:
        try:
            page: Page = await self.pages.page(
                batch_id=source, start=start.position, wanted=wanted, limit=self.asked.limit
            )
        except ResultsGone as gone:
            raise errors.results_gone(source) from gone
        except WrongPosition as wrong:
            message = "The order that this cursor is of was not kept: read the results from the top, without 'after'."
            raise errors.invalid_value("after", message) from wrong
        return _Told(
            lines=[(text, Cursor(batch_id=start.batch_id, position=behind)) for text, behind in page.results],
            next=Cursor(batch_id=start.batch_id, position=page.next),
            has_more=page.has_more,
            complete=page.complete,
        )


def _part(family: Sequence[Batch], at: int) -> tuple[str, Wanted]:
    """Return whose Results stand at a place of a family, and which of them: a void child's are its parent's."""
    found = family[at]

    def children(of: str | None) -> list[Child]:
        return [as_child(each) for each in family if each.object.parent_id == of]

    mine = as_child(found)
    if at and mine.is_void:
        return str(found.object.parent_id), shown_in_place(children(found.object.parent_id), mine)
    return found.id, still_shown(children(found.id))


async def _lines(source: AsyncGenerator[_Told | None, None]) -> AsyncGenerator[bytes | None, None]:
    async for page in source:
        yield b"".join(text for text, _ in page.lines) if page is not None and page.lines else None


async def _events(source: AsyncGenerator[_Told | None, None]) -> AsyncGenerator[Event | None, None]:
    async for page in source:
        if page is None:
            yield None
            continue
        for text, behind in page.lines:
            yield Event(name="result", id=behind.text(), data=text[:-1])
        if page.complete:
            yield Event(name="end", id=page.next.text(), data=b"")


def _asked(request: Request, batch_id: str, limits: Limits, *, resumes: bool) -> _Asked:
    """Return what the query asks for; a stream that `resumes` goes on where its client says that it was cut off."""
    after = query_word(request, "after")
    if resumes:
        after = request.headers.get("last-event-id") or after
    start = Cursor(batch_id=batch_id) if after is None else parse_cursor(after)
    return _Asked(
        batch_id=batch_id,
        start=start,
        wanted=_wanted(request),
        limit=query_limit(request, default=limits.results_page, most=limits.max_results_page),
        merged=query_choice(request, "merged", _BOOLEANS, default="false") == "true",
    )


def _wanted(request: Request) -> Wanted:
    status, group = query_word(request, "status"), query_word(request, "error_group")
    if status not in (None, "succeeded", "failed"):
        raise errors.invalid_value("status", "'status' must be one of: succeeded, failed.")
    if group is not None and not is_group(group):
        raise errors.invalid_value("error_group", "'error_group' must be the id of an error group.")
    return Wanted(
        succeeded=status != "failed" and group is None,
        failed=status != "succeeded",
        groups=None if group is None else frozenset({group}),
    )


def _wait(request: Request, *, most: int) -> int:
    text = query_word(request, "wait")
    if text is None:
        return 0
    if not re.fullmatch(r"[0-9]{1,4}", text) or int(text) > most:
        raise errors.invalid_value("wait", f"'wait' must be a whole number of seconds from 0 to {most}.")
    return int(text)
