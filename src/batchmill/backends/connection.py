"""One HTTP/1.1 connection: one request at a time out, its Reply in; whatever else a server does closes it."""

import asyncio
from collections.abc import Callable
from math import inf
from typing import Final, cast

from batchmill.backends.backend import Reply
from batchmill.backends.reader import ReplyReader
from batchmill.schedule.retry import Fault

__all__ = ["Connection"]

_PIECE: Final = 1 << 18  # a longer body goes out as the socket takes it, never copied whole into a buffer
_NOTHING: Final = memoryview(b"")


class Connection(asyncio.Protocol):
    """Carries requests, one after another.

    A deadline costs no timer of its own: the one that is set is left alone while it is due earlier, and when it rings
    it is set anew. So it rings on time, to the event loop's millisecond, and seldom.

    Attributes:
        closed: It carries nothing any more.
        gone: Done when the event loop has let go of it.
        idle_since: When its last reply was whole, by the loop's clock.
        stale: The server closed it with a request out, and not one byte of a reply had come.
    """

    __slots__ = (
        "_deadline",
        "_due",
        "_keep",
        "_loop",
        "_open_ones",
        "_paused",
        "_reader",
        "_rest",
        "_rings_at",
        "_timer",
        "_transport",
        "_waiter",
        "closed",
        "gone",
        "idle_since",
        "stale",
    )

    def __init__(
        self,
        *,
        reader: ReplyReader,
        keep: Callable[["Connection"], None],
        open_ones: set["Connection"],
    ) -> None:
        """Wait for `connection_made`.

        Args:
            reader: Reads this connection's replies.
            keep: Called when a whole reply is there and the connection can carry another request.
            open_ones: Holds this connection for as long as the event loop knows it.
        """
        self._loop = asyncio.get_running_loop()
        self._reader = reader
        self._keep = keep
        self._open_ones = open_ones
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[Reply] | None = None
        self._paused = False
        self._rest = _NOTHING
        self._timer: asyncio.TimerHandle | None = None
        self._rings_at = inf
        self._due = self._deadline = 0.0
        self.closed = False
        self.gone: asyncio.Future[None] = self._loop.create_future()
        self.stale = False
        self.idle_since = 0.0

    async def exchange(self, head: bytes, body: bytes, *, due: float, deadline: float) -> Reply:
        """Send one request and wait for its reply; a cancel closes the connection.

        Args:
            head: Everything up to the body.
            body: Sent as it is.
            due: When the last byte of the reply must be here, by the loop's clock.
            deadline: The seconds that it had, to be told.
        """
        transport = self._transport
        if self.closed or transport is None:
            self.stale = True
            return self._reader.end(lost=True)
        waiter: asyncio.Future[Reply] = self._loop.create_future()
        self._waiter = waiter
        self._due, self._deadline = due, deadline
        if due < self._rings_at:
            self._ring_at(due)
        if len(body) <= _PIECE:
            transport.write(head + body)
        else:
            transport.write(head)
            self._rest = memoryview(body)
            self._send_rest()
        try:
            return await waiter
        except asyncio.CancelledError:
            if self._waiter is waiter:  # else the reply came first, and the connection may carry another's request
                self.close()
            raise

    def close(self) -> None:
        """Close at once; who waits for a reply gets a fault."""
        if not self.closed:
            self.closed = True
            self._rest = _NOTHING
            self._settle(Reply(fault=Fault.RESET, detail="the connection was closed"))
            if self._transport is not None:
                self._transport.abort()

    # What the event loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection stands, TLS and all."""
        self._transport = cast("asyncio.Transport", transport)
        self._open_ones.add(self)

    def data_received(self, data: bytes) -> None:
        """Read on; bytes that nobody asked for close the connection."""
        if self._waiter is None:
            self.close()
            return
        reply = self._reader.feed(data)
        if reply is not None:
            self._answered(reply)

    def eof_received(self) -> None:
        """The server will say no more; a connection that is half closed is closed."""
        self._ended(lost=False)

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        self._ended(lost=exc is not None)
        if self._timer is not None:
            self._timer.cancel()
        self._transport = None
        self._open_ones.discard(self)
        self.gone.set_result(None)

    def pause_writing(self) -> None:
        """The socket is full."""
        self._paused = True

    def resume_writing(self) -> None:
        """The socket takes more."""
        self._paused = False
        self._send_rest()

    def _send_rest(self) -> None:
        while self._rest and not self._paused and self._transport is not None:
            piece, self._rest = self._rest[:_PIECE], self._rest[_PIECE:]
            self._transport.write(piece)

    def _ended(self, *, lost: bool) -> None:
        if self._waiter is not None:
            self.stale = not self._reader.heard
            self._settle(self._reader.end(lost=lost))
        self.close()

    def _answered(self, reply: Reply) -> None:
        self._settle(reply)
        if self._reader.keeps and not self._rest:
            self._reader.begin()  # now, not later: it lets go of the reply
            self.idle_since = self._loop.time()
            self._keep(self)
        else:
            self.close()

    def _settle(self, reply: Reply) -> None:
        """Give the reply to who waits, if anybody still does."""
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(reply)

    def _ring_at(self, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._rings_at = when
        self._timer = self._loop.call_at(when, self._ring)

    def _ring(self) -> None:
        self._timer, self._rings_at = None, inf
        if self._waiter is None:
            return
        if self._loop.time() < self._due:
            self._ring_at(self._due)
            return
        self._settle(Reply(fault=Fault.TIMEOUT, detail=f"no complete reply within {self._deadline:g} s"))
        self.close()
