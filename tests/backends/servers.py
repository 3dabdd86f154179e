"""Servers on 127.0.0.1 whose every byte a test decides."""

import asyncio
import contextlib
import socket
import ssl
import struct
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Protocol

from aiohttp import web

from batchmill.backends.backend import Reply
from batchmill.backends.transport import Transport

__all__ = [
    "Connection",
    "Handler",
    "MakeTransport",
    "RawServer",
    "Script",
    "Serve",
    "ServeRaw",
    "answer",
    "post",
    "says",
]


class Connection:
    """One connection as a hostile server sees it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Wrap the two halves."""
        self._reader = reader
        self._writer = writer

    async def read_request(self) -> bytes:
        """The head and body of the next request; b"" where the client has hung up."""
        try:
            head = await self._reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            return b""
        length = 0
        for line in head.lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):
                length = int(line.partition(b":")[2])
        return head + await self._reader.readexactly(length)

    async def write(self, data: bytes) -> None:
        """Send bytes as they are."""
        self._writer.write(data)
        await self._writer.drain()

    async def closed_by_client(self) -> None:
        """Return when the client has hung up."""
        while await self._reader.read(4096):
            pass

    async def read_head(self) -> bytes:
        """The head of the next request, and nothing after it."""
        return await self._reader.readuntil(b"\r\n\r\n")

    def half_close(self) -> None:
        """Say that nothing more will be said; the client may still be heard."""
        self._writer.write_eof()

    def reset(self) -> None:
        """Close with an RST."""
        sock = self._writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()


@dataclass
class RawServer:
    """What such a server has seen."""

    url: str = ""
    connections: int = 0
    hung_up: asyncio.Event = field(default_factory=asyncio.Event)


Script = Callable[[RawServer, Connection], Awaitable[None]]
ServeRaw = Callable[[Script], Awaitable[RawServer]]
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Serve = Callable[[Handler], Awaitable[str]]


class MakeTransport(Protocol):
    """Makes the transport under test."""

    def __call__(self, *, max_reply_bytes: int = 200_000, connect_timeout: float = 5.0) -> Transport:
        """Make one; the test need not close it."""


def answer(body: bytes, head: bytes = b"HTTP/1.1 200 OK") -> bytes:
    """A whole, well-framed answer."""
    return head + b"\r\nContent-Length: %d\r\n\r\n" % len(body) + body


def says(data: bytes) -> Script:
    """A server that says the same bytes after each request and then hangs up."""

    async def script(_raw: RawServer, connection: Connection) -> None:
        if await connection.read_request():
            await connection.write(data)

    return script


async def post(
    transport: Transport,
    url: str,
    *,
    body: bytes = b"{}",
    deadline: float = 20.0,
    headers: Mapping[str, str] = MappingProxyType({}),
    once: bool = False,
) -> Reply:
    """One POST, as a backend makes it."""
    return await transport.request(method="POST", url=url, headers=headers, body=body, deadline=deadline, once=once)


async def start_raw(
    script: Script, stack: contextlib.AsyncExitStack, *, tls: ssl.SSLContext | None = None
) -> RawServer:
    """Run `script` for each connection until `stack` is closed; with `tls` the URL is https on localhost."""
    raw = RawServer()
    writers: set[asyncio.StreamWriter] = set()
    running: set[asyncio.Task[None]] = set()

    async def converse(connection: Connection) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await script(raw, connection)

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        raw.connections += 1
        writers.add(writer)
        task = asyncio.create_task(converse(Connection(reader, writer)))
        running.add(task)
        await asyncio.wait([task])
        writer.close()

    async def stop() -> None:
        server.close()
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        for writer in writers:
            writer.transport.abort()
            with contextlib.suppress(OSError):  # the client's RST, or a TLS that never began
                await writer.wait_closed()

    server = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=tls, backlog=1_000)
    stack.push_async_callback(stop)
    port = server.sockets[0].getsockname()[1]
    raw.url = f"http://127.0.0.1:{port}/v1" if tls is None else f"https://localhost:{port}/v1"
    return raw


async def start_polite(handler: Handler, stack: contextlib.AsyncExitStack) -> str:
    """Answer every path with `handler` until `stack` is closed; gives the API's root."""
    app = web.Application(client_max_size=1 << 26)
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app, shutdown_timeout=0)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    return f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
