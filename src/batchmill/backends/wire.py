"""Our own Transport: HTTP/1.1 on httptools, as little of it as one request and one reply need."""

import asyncio
import socket
import ssl
from collections import deque
from collections.abc import Mapping
from functools import lru_cache
from typing import Final, NamedTuple
from urllib.parse import quote, urlsplit

from aiohappyeyeballs import start_connection
from msgspec.structs import replace

from batchmill.backends.backend import Reply
from batchmill.backends.connection import Connection
from batchmill.backends.reader import ReplyReader
from batchmill.backends.transport import HEADERS, IDLE_SECONDS, tls_context
from batchmill.clock import Clock
from batchmill.schedule.retry import Fault

__all__ = ["WireTransport"]

_EYEBALLS_SECONDS: Final = 0.25  # RFC 8305: how long one address may be silent before the next is tried beside it
_PORTS: Final = {"http": 80, "https": 443}
_SAFE: Final = "/%:@!$&'()*+,;=~?"  # stand in a path or query as they are (RFC 3986)
_ROUTES: Final = 256  # URLs whose heads are kept


class _Origin:
    """One server: how to reach it, and the connections to it that wait for a request, the latest used last."""

    def __init__(self, *, host: str, port: int, secure: bool) -> None:
        self.host = host
        self.port = port
        self.secure = secure
        self.turn = 0
        self._kept: deque[Connection] = deque()
        self._sweep: asyncio.TimerHandle | None = None

    def take(self) -> Connection | None:
        """The connection that was used last, unless it has been idle for too long; None where there is none."""
        while self._kept:
            connection = self._kept.pop()
            if not connection.closed:
                return connection
        return None

    def keep(self, connection: Connection) -> None:
        """Keep a connection for the next request, but not for long."""
        self._kept.append(connection)
        if self._sweep is None:
            self._sweep = asyncio.get_running_loop().call_later(IDLE_SECONDS, self._cut)

    def _cut(self) -> None:
        """Close what has been idle for too long; those stand first."""
        loop = asyncio.get_running_loop()
        while self._kept and self._kept[0].idle_since + IDLE_SECONDS <= loop.time():
            self._kept.popleft().close()
        oldest = self._kept[0] if self._kept else None
        self._sweep = None if oldest is None else loop.call_at(oldest.idle_since + IDLE_SECONDS, self._cut)

    def close(self) -> None:
        """Keep nothing."""
        self._kept.clear()
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None


class _Route(NamedTuple):
    """Where the requests of one method and URL go, and how they all begin."""

    origin: _Origin
    head: bytes


class WireTransport:
    """HTTP/1.1 by our own hand, with what AiohttpTransport promises at a fraction of its cost.

    Proxies and netrc of the environment are ignored, redirects not followed, cookies not kept, bodies not
    decompressed. It does not limit connections: Pace does. It lives in one event loop.
    """

    def __init__(self, *, clock: Clock, max_reply_bytes: int, connect_timeout: float = 5.0) -> None:
        """Open nothing yet.

        Args:
            clock: Tells the time, for a Retry-After that is a date.
            max_reply_bytes: A longer reply is dropped with its connection (`Fault.OVERSIZE`).
            connect_timeout: Seconds for name, TCP and TLS together.
        """
        self._clock = clock
        self._max_reply_bytes = max_reply_bytes
        self._connect_timeout = connect_timeout
        self._closed = False
        self._tls: ssl.SSLContext | None = None
        self._origins: dict[tuple[str, str, int], _Origin] = {}
        self._open: set[Connection] = set()
        self._route = lru_cache(_ROUTES)(self._find_route)

    async def request(
        self,
        *,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes | None,
        deadline: float,
        once: bool = False,
    ) -> Reply:
        """Make one request; see `Transport.request`.

        A server may close an idle connection just as we send on it. Where not one byte came back on a connection
        that had been used before, the request is sent again at once, over a new one, unless `once`; the Reply says so.
        """
        try:
            origin, beginning = self._route(method, url)
        except ValueError:
            return Reply(fault=Fault.UNREACHABLE, detail="its URL is not one that we can call")
        length = b"" if body is None else b"Content-Length: %d\r\n" % len(body)
        head = b"%b%b%b\r\n" % (beginning, _fields(headers), length)
        due = asyncio.get_running_loop().time() + deadline
        kept = origin.take()
        if kept is not None:
            reply = await kept.exchange(head, body or b"", due=due, deadline=deadline)
            if once or not kept.stale:
                return reply
        fresh = await self._connect(origin, due=due)
        if isinstance(fresh, Reply):
            return fresh
        reply = await fresh.exchange(head, body or b"", due=due, deadline=deadline)
        return reply if kept is None else replace(reply, resent=1)

    async def close(self) -> None:
        """Close every connection; who waits for a reply gets a fault."""
        self._closed = True
        for origin in self._origins.values():
            origin.close()
        for connection in tuple(self._open):
            connection.close()
        if self._open:
            await asyncio.wait([connection.gone for connection in self._open])

    def _find_route(self, method: str, url: str) -> _Route:
        """Take a URL apart.

        Raises:
            ValueError: It is none that we can call.
        """
        parts = urlsplit(url)
        if parts.scheme not in _PORTS or not parts.hostname:
            raise ValueError("neither http nor https")
        host = parts.hostname if parts.hostname.isascii() else parts.hostname.encode("idna").decode()
        usual = _PORTS[parts.scheme]
        key = (parts.scheme, host, parts.port or usual)
        origin = self._origins.get(key)
        if origin is None:
            origin = self._origins[key] = _Origin(host=host, port=key[2], secure=parts.scheme == "https")
        target = quote(parts.path or "/", safe=_SAFE)
        if parts.query:
            target += "?" + quote(parts.query, safe=_SAFE)
        authority = (f"[{host}]" if ":" in host else host) + (f":{key[2]}" if key[2] != usual else "")
        return _Route(origin, f"{method} {target} HTTP/1.1\r\nHost: {authority}\r\n".encode() + _fields(HEADERS))

    async def _connect(self, origin: _Origin, *, due: float) -> Connection | Reply:
        """Open a connection, or say why there is none. Nothing of the request has left then, whatever went wrong."""
        left = due - asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(min(self._connect_timeout, left)):
                return await self._opened(origin)
        except TimeoutError:
            why = "it did not accept a connection in time"
        except (socket.gaierror, UnicodeError):
            why = "its host name cannot be resolved"
        except ssl.SSLCertVerificationError:
            why = "its TLS certificate is not trusted"
        except ssl.SSLError:
            why = "the TLS handshake failed"
        except (OSError, RuntimeError) as error:  # uvloop raises either where a socket cannot be connected
            why = f"it cannot be connected to ({getattr(error, 'strerror', None) or 'no reason given'})"
        return Reply(fault=Fault.UNREACHABLE, detail=why)

    async def _opened(self, origin: _Origin) -> Connection:
        loop = asyncio.get_running_loop()
        if origin.secure and self._tls is None:
            self._tls = tls_context()
        found = await loop.getaddrinfo(origin.host, origin.port, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
        first = origin.turn % len(found)  # replicas behind one name get connections in turns
        origin.turn += 1
        sock = await start_connection([*found[first:], *found[:first]], happy_eyeballs_delay=_EYEBALLS_SECONDS)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        _, connection = await loop.create_connection(
            lambda: Connection(reader=self._reader(), keep=origin.keep, open_ones=self._open),
            sock=sock,
            ssl=self._tls if origin.secure else None,
            server_hostname=origin.host.rstrip(".") if origin.secure else None,
        )
        if self._closed:
            connection.close()
        return connection

    def _reader(self) -> ReplyReader:
        return ReplyReader(now=self._clock.now, max_reply_bytes=self._max_reply_bytes)


def _fields(headers: Mapping[str, str]) -> bytes:
    """Return headers as they are sent.

    Raises:
        ValueError: One holds a line break, and would be more than one.
    """
    text = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
    if text.count("\n") != len(headers) or text.count("\r") != len(headers):
        raise ValueError("a header cannot hold a line break")
    return text.encode()
