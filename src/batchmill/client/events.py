"""Server-sent events, read from the bytes of a stream as they come."""

from collections.abc import AsyncIterable, AsyncIterator
from dataclasses import dataclass

from batchmill.client.failure import Failed

_MOST = 64 << 20  # bytes of one line: a result line and its head


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One event: its name, "message" where it has none, and its data."""

    name: str
    data: bytes


async def lines_of(chunks: AsyncIterable[bytes], *, most: int = _MOST) -> AsyncIterator[bytes]:
    """Yield the lines of a stream, without their ends; one that is cut off by the end of the stream, too.

    Raises:
        Failed: a line is longer than `most` bytes.
    """
    left = bytearray()
    async for chunk in chunks:
        looked, start = len(left), 0
        left += chunk
        while (end := left.find(b"\n", looked)) >= 0:
            yield bytes(left[start:end]).removesuffix(b"\r")
            looked = start = end + 1
        del left[:start]
        if len(left) > most:
            raise Failed(f"The server sends a line of over {most:,} bytes.")
    if left:
        yield bytes(left).removesuffix(b"\r")


async def events_of(chunks: AsyncIterable[bytes]) -> AsyncIterator[Event]:
    """Yield the events of a stream; comments are passed over, and so is an event that the end cuts off."""
    name, data = "", list[bytes]()
    async for line in lines_of(chunks):
        if not line:
            if data:
                yield Event(name=name or "message", data=b"\n".join(data))
            name, data = "", []
            continue
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"event":
            name = value.decode(errors="replace")
        elif field == b"data":
            data.append(value)
