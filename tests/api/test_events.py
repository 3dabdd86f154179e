"""Answers that go on: events, signs of life, and every way in which one ends."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, MutableMapping
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import Request

from batchmill.api.events import Event, Streams
from batchmill.api.slots import Slots
from batchmill.store.database import DatabaseAway
from fakeclock import FakeClock, settle


class Stage:
    """A source that yields what it is given, once a second, and a client that reads it."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.to_tell: list[Any] = []
        self.over = self.stopping = self.closed = False
        self.admitted = True
        self.fault: Exception | None = None
        self.sent: list[Any] = []
        self.gone = asyncio.Event()
        self.streams = Streams(clock=self.clock, slots=Slots(each=1, most=1), stopping=lambda: self.stopping)
        self.request: Any = SimpleNamespace(state=SimpleNamespace(still_admitted=self._still_admitted, caller="key"))

    async def source(self) -> AsyncGenerator[Any, None]:
        """Look once a second."""
        try:
            while not self.over:
                yield self.to_tell.pop(0) if self.to_tell else None
                await self.clock.sleep(1.0)
                if self.fault is not None:
                    raise self.fault
        finally:
            self.closed = True

    @asynccontextmanager
    async def answering(self, answer: Callable[[Request, Any], Any]) -> AsyncIterator["asyncio.Task[None]"]:
        """Send an answer to a client."""
        scope = {"type": "http", "asgi": {"spec_version": "2.3"}}  # as uvicorn has it
        response = answer(self.request, self.source())
        task = asyncio.create_task(response(scope, self._receive, self._send))
        await settle()
        yield task
        self.gone.set()
        await asyncio.wait_for(task, timeout=10)

    def body(self) -> bytes:
        """Return what came of the body so far."""
        return b"".join(message["body"] for message in self.sent[1:])

    def is_whole(self) -> bool:
        """Say whether the answer has its end."""
        return not self.sent[-1].get("more_body", True)

    async def _still_admitted(self) -> bool:
        return self.admitted

    async def _receive(self) -> dict[str, Any]:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:  # noqa: ANN401 - any of ASGI's
        self.sent.append(message)


def test_an_event_is_written_as_the_standard_has_it() -> None:
    """Each line of the data has a field of its own, whatever ended it; an id stands if there is one."""
    assert Event(name="a", data=b'{"b":1}').wire() == b'event: a\ndata: {"b":1}\n\n'
    assert Event(name="a", data=b"1\r\n2\r3\n", id="c").wire() == b"event: a\nid: c\ndata: 1\ndata: 2\ndata: 3\n\n"
    assert Event(name="end", data=b"").wire() == b"event: end\ndata: \n\n"


async def test_events_come_at_once_and_end_with_the_source() -> None:
    """What is there is sent, nothing in between, and nothing of it may be kept or held back on the way."""
    stage = Stage()
    stage.to_tell = [Event(name="a", data=b"1"), None, Event(name="a", data=b"2")]
    async with stage.answering(stage.streams.events) as task:
        assert stage.body() == b"event: a\ndata: 1\n\n"
        headers = dict(stage.sent[0]["headers"])
        assert headers[b"content-type"] == b"text/event-stream; charset=utf-8"
        assert headers[b"cache-control"] == b"no-store"
        assert headers[b"x-accel-buffering"] == b"no"
        await stage.clock.advance(1)
        assert stage.body() == b"event: a\ndata: 1\n\n"
        await stage.clock.advance(1)
        assert stage.body() == b"event: a\ndata: 1\n\nevent: a\ndata: 2\n\n"
        stage.over = True
        await stage.clock.advance(1)
        await task
    assert stage.is_whole()
    assert stage.closed


async def test_a_comment_is_sent_where_nothing_else_was_for_15_seconds() -> None:
    """An event puts it off."""
    stage = Stage()
    async with stage.answering(stage.streams.events):
        await stage.clock.advance(14)
        assert stage.body() == b""
        stage.to_tell = [Event(name="a", data=b"")]
        await stage.clock.advance(15)
        assert stage.body() == b"event: a\ndata: \n\n"
        await stage.clock.advance(15)
        assert stage.body() == b"event: a\ndata: \n\n: \n\n"


async def test_lines_have_no_comments() -> None:
    """They are bytes as they are, with the headers that are asked for."""
    stage = Stage()
    stage.to_tell = [b"1\n"]

    def answer(request: Request, source: Any) -> Any:  # noqa: ANN401 - as in Stage
        return stage.streams.lines(request, source, media_type="application/jsonl", headers={"x-a": "b"})

    async with stage.answering(answer):
        await stage.clock.advance(40)
        headers = dict(stage.sent[0]["headers"])
        assert (headers[b"content-type"], headers[b"x-a"]) == (b"application/jsonl", b"b")
        assert stage.body() == b"1\n"


async def test_a_client_that_goes_away_closes_the_source() -> None:
    """Nothing looks on for nobody."""
    stage = Stage()
    async with stage.answering(stage.streams.events):
        assert not stage.closed
    assert stage.closed
    assert stage.clock.sleeping == 0


@pytest.mark.parametrize("kind", ["events", "lines"])
@pytest.mark.parametrize("why", ["stop", "revoked", "away"])
async def test_what_ends_before_its_time_looks_whole_only_as_events(
    kind: str, why: str, logged: list[MutableMapping[str, Any]]
) -> None:
    """An outage or a stop ends them within a second, a bad key within 15; lines are cut, events just end."""
    stage = Stage()

    def lines(request: Request, source: Any) -> Any:  # noqa: ANN401 - as in Stage
        return stage.streams.lines(request, source, media_type="application/jsonl", headers={})

    async with stage.answering(stage.streams.events if kind == "events" else lines) as task:
        stage.stopping, stage.admitted = why == "stop", why != "revoked"
        stage.fault = DatabaseAway("nobody answers") if why == "away" else None
        await stage.clock.advance(15 if why == "revoked" else 1)
        await asyncio.wait_for(task, timeout=10)
    assert stage.is_whole() is (kind == "events")
    assert stage.closed
    told = [(entry["event"], entry["reason"]) for entry in logged]
    assert told == ([("stream ended", "nobody answers")] if why == "away" else [])
