"""Answers that go on for as long as there is something to tell: server-sent events, and lines as they come."""

from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AbstractContextManager, aclosing
from dataclasses import dataclass
from typing import TypeVar

import structlog
from fastapi import Request, Response
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from batchmill.api.fault import AWAY
from batchmill.api.slots import Slots
from batchmill.clock import Clock

T = TypeVar("T")

_BEAT = b": \n\n"  # a comment: proxies and clients give up a connection on which nothing comes
_BEAT_SECONDS = 15.0
_ASK_SECONDS = 15.0  # a key that was revoked is noticed within these
_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # the second: nginx would hold it all back


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One server-sent event (HTML Living Standard, 9.2).

    `data` is UTF-8; of its line ends a client gets to see line feeds. `id` is what a client that comes back sends as
    `Last-Event-ID`: one line, without a NUL.
    """

    name: str
    data: bytes
    id: str | None = None

    def wire(self) -> bytes:
        """Return its bytes."""
        named = f"event: {self.name}\n" if self.id is None else f"event: {self.name}\nid: {self.id}\n"
        data = b"".join(b"data: %b\n" % line for line in self.data.splitlines() or [b""])
        return b"%b%b\n" % (named.encode(), data)


def asks_for_events(request: Request) -> bool:
    """Say whether a client wants events, by its `Accept`."""
    accepted = ",".join(request.headers.getlist("accept")).lower()
    return any(kind.partition(";")[0].strip() == "text/event-stream" for kind in accepted.split(","))


class Streams:
    """Makes answers of sources that look once a second and yield what is new, or None where nothing is.

    A source waits by the Clock alone, and holds neither a transaction nor a thread while it does. It is closed however
    the answer ends: at its own end, when the client goes away, when its key is no longer good, in an outage, or when
    this process is to stop (`stopping`), which must not wait for clients. Each looks into the rows again and again, so
    there are only so many at a time (`slots`); one more is a 429.
    """

    def __init__(self, *, clock: Clock, slots: Slots, stopping: Callable[[], bool]) -> None:
        self._clock = clock
        self._slots = slots
        self._stopping = stopping
        self._log = structlog.get_logger("api")

    def events(self, request: Request, source: AsyncGenerator[Event | None, None]) -> Response:
        """Answer with events, and with a comment where there was none for 15 s.

        What ends before its time ends in order: a client knows by its last event whether that was all.
        """
        told = self._told(request, source, Event.wire, beat=_BEAT, cut=False)
        return _Stream(told, slot=self._slot(request), headers=_HEADERS, media_type="text/event-stream")

    def lines(
        self,
        request: Request,
        source: AsyncGenerator[bytes | None, None],
        *,
        media_type: str,
        headers: Mapping[str, str],
    ) -> Response:
        """Answer with bytes as they are. What ends before its time is cut off, so that it never looks whole."""
        told = self._told(request, source, bytes, beat=None, cut=True)
        return _Stream(told, slot=self._slot(request), headers={**_HEADERS, **headers}, media_type=media_type)

    def _slot(self, request: Request) -> AbstractContextManager[None]:
        return self._slots.one(request.state.caller)

    async def _told(
        self,
        request: Request,
        source: AsyncGenerator[T | None, None],
        wire: Callable[[T], bytes],
        *,
        beat: bytes | None,
        cut: bool,
    ) -> AsyncGenerator[bytes, None]:
        told_at = asked_at = self._clock.boot()
        async with aclosing(source):
            try:
                async for found in source:
                    now = self._clock.boot()
                    gone = False
                    if now - asked_at >= _ASK_SECONDS:
                        asked_at, gone = now, not await request.state.still_admitted()
                    if gone or self._stopping():
                        break
                    said = beat if found is None and now - told_at >= _BEAT_SECONDS else None
                    if found is not None:
                        said = wire(found)
                    if said is not None:
                        told_at = now
                        yield said
                else:
                    return
            except AWAY as fault:  # its client hears more when it asks again
                self._log.warning("stream ended", reason=str(fault))
        if cut:
            raise _Cut


class _Cut(Exception):  # noqa: N818 - it states what is so
    """The answer ends before its time."""


class _Stream(StreamingResponse):
    """What is told while it holds a slot; the source is closed with it."""

    def __init__(
        self,
        told: AsyncGenerator[bytes, None],
        *,
        slot: AbstractContextManager[None],
        headers: Mapping[str, str],
        media_type: str,
    ) -> None:
        super().__init__(told, headers=headers, media_type=media_type)
        self._told = told
        self._slot = slot

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._told):
            try:
                with self._slot:
                    await super().__call__(scope, receive, send)
            except _Cut:  # the server closes the connection under an answer that has no end
                return
