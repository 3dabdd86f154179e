"""Embeddings calls that are sent at about the same time go as one; whoever sent them cannot tell.

What cannot go so, goes as it is: other endpoints, inputs that are no texts, and calls that may be sent only once, since
a pack that failed may have run. If anything comes back but a reply that can be shared out, each line goes alone after
all: a bad line fails alone, its neighbours do not, and no more is in flight than without packs.
"""

import asyncio
from collections.abc import Sequence
from hashlib import blake2b
from typing import Final

import msgspec
import structlog

from batchmill.backends.backend import Backend, Call, Reply
from batchmill.clock import Clock
from batchmill.schedule.retry import Fault
from batchmill.schedule.window import Gauges
from batchmill.spec.embeddings import Parts, pack, parts_of, unpack

__all__ = ["PackingBackend"]

_ENDPOINT: Final = "/v1/embeddings"
_INPUTS: Final = 32  # of a pack: text-embeddings-inference takes no more, and more would save next to nothing
_BYTES: Final = 1 << 20  # of its inputs: 32 of the longest that OpenAI's models take, about
_WAIT_SECONDS: Final = 0.002  # for others: lines that went alone end one by one, and would never go together again
_IN_VAIN: Final = 3  # packs in a row that could not be shared out; then lines go alone for a while
_REST_SECONDS: Final = 60.0


class _Line:
    """A call in a pack, and its share of the reply once there is one."""

    def __init__(self, call: Call, parts: Parts) -> None:
        self.call = call
        self.parts = parts
        self.has_left = False
        self.share: Reply | None = None


class _Pack:
    """Calls whose bodies differ in nothing but their inputs; `in_vain` is how often they were sent without a share."""

    def __init__(self, parts: Parts) -> None:
        self.key = _key(parts)
        self.full = asyncio.Event()
        self.lines: list[_Line] = []
        self.inputs = self.bytes = 0
        self.in_vain = 0

    def takes(self, parts: Parts) -> bool:
        """Say whether there is room for these inputs."""
        return _fits(self.inputs + parts.inputs, self.bytes + len(parts.texts))

    def add(self, line: _Line) -> None:
        """Add a call that there is room for."""
        self.lines.append(line)
        self.inputs += line.parts.inputs
        self.bytes += len(line.parts.texts)

    def staying(self) -> list[_Line]:
        """Return the calls that somebody waits for."""
        return [line for line in self.lines if not line.has_left]


class PackingBackend:
    """A backend that sends embeddings to another one in packs (`pack_embeddings`).

    A line's deadline is that of the one call that carries it; after a pack in vain it has another. A pack goes on as
    long as one of its lines is waited for. Its Idempotency-Key is its own, the same for the same lines.
    """

    def __init__(self, *, backend: Backend, clock: Clock) -> None:
        """Wrap a backend; it is closed with this one."""
        self.name: Final = backend.name
        self._backend = backend
        self._clock = clock
        self._open: dict[tuple[bytes, bytes], _Pack] = {}  # packs that wait for more
        self._carried: dict[_Pack, asyncio.Task[None]] = {}
        self._in_vain = 0
        self._rests_until = float("-inf")  # boot clock
        self._log = structlog.get_logger("packing")

    async def models(self) -> tuple[str, ...]:
        """See `Backend`."""
        return await self._backend.models()

    async def gauges(self) -> Gauges | None:
        """See `Backend`."""
        return await self._backend.gauges()

    async def send(self, call: Call) -> Reply:
        """Make one attempt, with others if there are some. See `Backend`.

        `resent` counts the packs that the line was sent in before it went alone.
        """
        packed = call.endpoint == _ENDPOINT and not call.once and self._clock.boot() >= self._rests_until
        parts = parts_of(call.body) if packed else None
        if parts is None or not _fits(parts.inputs, len(parts.texts)):
            return await self._backend.send(call)
        pack, line = self._pack_for(parts), _Line(call, parts)
        pack.add(line)
        if pack.inputs == _INPUTS:
            self._close(pack)
        try:
            await asyncio.shield(self._carried[pack])
        except asyncio.CancelledError:
            self._leave(pack, line)
            raise
        if line.share is not None:
            return line.share
        reply = await self._backend.send(call)
        return msgspec.structs.replace(reply, resent=reply.resent + pack.in_vain)

    async def close(self) -> None:
        """End what is under way, and close the backend."""
        carried = list(self._carried.values())
        for task in carried:
            task.cancel()
        await asyncio.gather(*carried, return_exceptions=True)
        await self._backend.close()

    def _pack_for(self, parts: Parts) -> _Pack:
        """Return the open pack for such calls, a new one if there is none or it has no room."""
        found = self._open.get(_key(parts))
        if found is not None and found.takes(parts):
            return found
        if found is not None:
            self._close(found)
        made = self._open[_key(parts)] = _Pack(parts)
        self._carried[made] = task = asyncio.create_task(self._carry(made))
        task.add_done_callback(lambda _: self._carried.pop(made))
        return made

    def _close(self, closed: _Pack) -> None:
        """Take no more lines into a pack, and let it go."""
        if self._open.get(closed.key) is closed:
            del self._open[closed.key]
        closed.full.set()

    def _leave(self, left: _Pack, line: _Line) -> None:
        line.has_left = True
        if not left.staying() and left in self._carried:
            self._close(left)  # at once: nobody may join it any more
            self._carried[left].cancel()

    async def _carry(self, carried: _Pack) -> None:
        """Wait for more lines, send those that are there as one, and give each its share; without one it goes alone."""
        await self._wait(carried)
        self._close(carried)
        lines = carried.staying()
        if len(lines) < 2:  # noqa: PLR2004 - one is no pack
            return
        reply = await self._backend.send(_as_one(lines))
        shares = unpack(reply.body, [line.parts for line in lines]) if _succeeded(reply) else None
        if shares is None:
            carried.in_vain = reply.resent + (reply.fault is not Fault.UNREACHABLE)
            self._count_in_vain(reply)
            return
        self._in_vain = 0
        for line, body in zip(lines, shares, strict=True):
            line.share = msgspec.structs.replace(reply, body=body)

    async def _wait(self, waiting: _Pack) -> None:
        until = [asyncio.ensure_future(each) for each in (waiting.full.wait(), self._clock.sleep(_WAIT_SECONDS))]
        try:
            await asyncio.wait(until, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in until:
                each.cancel()

    def _count_in_vain(self, reply: Reply) -> None:
        self._in_vain += 1
        if self._in_vain < _IN_VAIN:
            return
        self._in_vain, self._rests_until = 0, self._clock.boot() + _REST_SECONDS
        why = reply.detail or f"status {reply.status}"
        self._log.warning("embeddings go alone for a while: packs come to nothing", backend=self.name, reason=why)


def _fits(inputs: int, size: int) -> bool:
    return inputs <= _INPUTS and size <= _BYTES


def _key(parts: Parts) -> tuple[bytes, bytes]:
    return parts.before, parts.after


def _succeeded(reply: Reply) -> bool:
    return reply.status is not None and 200 <= reply.status < 300  # noqa: PLR2004 - the 2xx class


def _as_one(lines: Sequence[_Line]) -> Call:
    keys = "\n".join(line.call.idempotency_key for line in lines)
    first = lines[0].call
    return Call(
        endpoint=first.endpoint,
        body=pack([line.parts for line in lines]),
        request_id=f"{first.request_id}_and_{len(lines) - 1}",
        idempotency_key=f"pack_{blake2b(keys.encode(), digest_size=16).hexdigest()}",
    )
