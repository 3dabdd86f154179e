"""The route of a batch's Results in the order in which they came: a page, or all as they come."""

import re
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass

from fastapi import APIRouter, Request, Response

from batchmill.api.answer import query_choice, query_limit, query_word
from batchmill.api.events import Event, Streams
from batchmill.clock import Clock
from batchmill.ledger.page import Page, Pages, ResultsGone, Wanted, WrongPosition
from batchmill.spec import errors
from batchmill.spec.cursor import Cursor, parse_cursor
from batchmill.spec.limits import Limits
from batchmill.store.batch import find_batch
from batchmill.store.database import Database

JSONL = "application/jsonl"
_LOOK_SECONDS = 0.5  # between two looks for what is new
_GROUP = re.compile(r"[0-9a-f]{16}")
_STREAM = "text/event-stream"
_BOOLEANS = ("false", "true")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """Which Results of which batch a client asks for, from where on, and how many at once."""

    batch_id: str
    start: Cursor
    wanted: Wanted
    limit: int


def result_routes(
    *,
    database: Database,
    pages: Pages,
    streams: Streams,
    clock: Clock,
    limits: Limits,
    stopping: Callable[[], bool],
) -> APIRouter:
    """Return the route; `stopping` says that this process is to end, which waits for nobody."""
    router = APIRouter(prefix="/v1/batches", tags=["batches"])

    @router.get("/{batch_id}/results")
    async def results(request: Request, batch_id: str) -> Response:
        """Return results in the order in which they came, from a cursor on; `wait` for some, or `follow` them."""
        wait = _wait(request, most=limits.max_results_wait)
        follow = query_choice(request, "follow", _BOOLEANS, default="false") == "true"
        as_events = _STREAM in request.headers.get("accept", "")
        asked = _asked(request, batch_id, limits, resumes=as_events)
        mine = request.state.organisation_id
        if await database.read(lambda tx: find_batch(tx, organisation_id=mine, batch_id=batch_id)) is None:
            raise errors.not_found("batch")
        until = clock.boot() + wait
        page = await _page(pages, asked, asked.start)
        if as_events:
            return streams.events(request, _events(_follow(pages, clock, asked, page)))
        if follow:
            lines = _lines(_follow(pages, clock, asked, page))
            return streams.lines(request, lines, media_type=JSONL, headers={})
        while not (page.lines or page.has_more or page.complete or stopping()) and (left := until - clock.boot()) > 0:
            await clock.sleep(min(left, _LOOK_SECONDS))
            page = await _page(pages, asked, page.next)
        told = {
            "x-next-cursor": page.next.text(),
            "x-has-more": _BOOLEANS[page.has_more],
            "x-complete": _BOOLEANS[page.complete],
            "Cache-Control": "no-store",
        }
        return Response(b"".join(text for text, _ in page.lines), media_type=JSONL, headers=told)

    return router


@dataclass(frozen=True, slots=True, kw_only=True)
class _Told:
    """A page as it is told: lines, each with the cursor behind it."""

    lines: list[tuple[bytes, Cursor]]
    next: Cursor
    has_more: bool
    complete: bool


async def _page(pages: Pages, asked: _Asked, start: Cursor) -> _Told:
    try:
        page: Page = await pages.page(
            batch_id=start.batch_id, start=start.position, wanted=asked.wanted, limit=asked.limit
        )
    except ResultsGone as gone:
        raise errors.not_found("result: both result files are deleted or have expired, no such") from gone
    except WrongPosition as wrong:
        message = "The order that this cursor is of was not kept: read the results from the top, without 'after'."
        raise errors.invalid_value("after", message) from wrong
    return _Told(
        lines=[(text, Cursor(batch_id=start.batch_id, position=behind)) for text, behind in page.results],
        next=Cursor(batch_id=start.batch_id, position=page.next),
        has_more=page.has_more,
        complete=page.complete,
    )


async def _follow(pages: Pages, clock: Clock, asked: _Asked, page: _Told) -> AsyncGenerator[_Told | None, None]:
    """Yield pages as there are some, the last one when there will be no more, and None at each look in vain."""
    while True:
        yield page if page.lines or page.complete else None
        if page.complete:
            return
        if not page.has_more:
            await clock.sleep(_LOOK_SECONDS)
        page = await _page(pages, asked, page.next)


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
    if start.batch_id != batch_id:
        raise errors.invalid_value("after", "'after' is the cursor of another batch.")
    return _Asked(
        batch_id=batch_id,
        start=start,
        wanted=_wanted(request),
        limit=query_limit(request, default=limits.results_page, most=limits.max_results_page),
    )


def _wanted(request: Request) -> Wanted:
    status, group = query_word(request, "status"), query_word(request, "error_group")
    if status not in (None, "succeeded", "failed"):
        raise errors.invalid_value("status", "'status' must be one of: succeeded, failed.")
    if group is not None and not _GROUP.fullmatch(group):
        raise errors.invalid_value("error_group", "'error_group' must be the id of an error group.")
    return Wanted(
        succeeded=status != "failed" and group is None,
        failed=status != "succeeded",
        groups=None if group is None else frozenset({group}),
    )


def _wait(request: Request, *, most: int) -> float:
    text = query_word(request, "wait")
    if text is None:
        return 0.0
    if not re.fullmatch(r"[0-9]{1,4}(\.[0-9]{1,3})?", text) or float(text) > most:
        raise errors.invalid_value("wait", f"'wait' must be a number of seconds from 0 to {most}.")
    return float(text)
