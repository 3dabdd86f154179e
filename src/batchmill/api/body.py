"""How a request's body may come: not too slowly and not for ever; and what becomes of one that nobody wants."""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from typing import Any

from batchmill.spec import errors
from batchmill.spec.limits import Limits

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


_SMALL = 64 << 10  # bytes of a body without a key that may be read, to throw them away


class Body:
    """The body of one request, as an ASGI `receive`.

    Only the time that the client lets us wait counts: a slow disk of ours is no fault of its own.
    """

    def __init__(self, *, receive: Receive, headers: MutableMapping[bytes, bytes], limits: Limits) -> None:
        self._receive = receive
        self._limits = limits
        self._bytes = 0
        self._waited = 0.0
        self.admitted = False  # it came with a key that is good
        self.ended = b"transfer-encoding" not in headers and headers.get(b"content-length", b"0") == b"0"
        self._may_drain = b"expect" not in headers  # who waits for leave to send has nothing on the way
        length = headers.get(b"content-length", b"")
        self._is_small = length.isdigit() and int(length) <= _SMALL

    async def receive(self) -> Message:
        """Return the next message; after the body's end, which may be long in coming, that of the disconnect.

        Raises:
            ApiError: 408, the body stands still or is too slow (reliability A18, A21).
        """
        if self.ended:
            return await self._receive()
        message = await self._in_time()
        ended = self._take(message)
        limits, late = self._limits, self._waited - self._limits.body_grace
        if not ended and (self._waited > limits.body_total or self._bytes < late * limits.body_rate):
            raise _too_slow()
        return message

    def headers(self) -> list[tuple[bytes, bytes]]:
        """Return what the answer must say: what is left of a body must not be taken for the next request."""
        return [] if self.ended else [(b"connection", b"close")]

    async def let_go(self, send: Send, last: Message) -> Message:
        """Send an answer's last part and return what ends it; in between, take some of what still comes, unseen.

        An answer on a connection that is cut at once may be lost. Who has no key is not read, but for what the kernel
        has taken already by the time (invariant S10 and its test).
        """
        if self.ended or not (self.admitted or self._is_small) or not self._may_drain:
            return last
        await send({**last, "more_body": True})
        most, ended = self._bytes + (self._limits.drain_bytes if self.admitted else _SMALL), False
        with suppress(TimeoutError):
            async with asyncio.timeout(self._limits.drain_seconds):
                while not ended and self._bytes < most:
                    ended = self._take(await self._receive())
        return {"type": "http.response.body"}

    async def _in_time(self) -> Message:
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            return await asyncio.wait_for(self._receive(), timeout=self._limits.body_idle)
        except TimeoutError as late:
            raise _too_slow() from late
        finally:
            self._waited += loop.time() - began

    def _take(self, message: Message) -> bool:
        self._bytes += len(message.get("body", b""))
        self.ended = message["type"] == "http.disconnect" or not message.get("more_body", False)
        return self.ended


def _too_slow() -> errors.ApiError:
    return errors.request_timeout("The request's body came too slowly, or stood still.")
