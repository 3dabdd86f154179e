"""A proxy before PostgreSQL that cuts a connection at its COMMIT: before it arrives, or once it is answered."""

import asyncio
import struct
from contextlib import suppress
from typing import Literal

Moment = Literal["before", "after"]
_STARTUP_CODES = {80877103, 80877104}  # SSLRequest, GSSENCRequest: an ordinary startup packet follows


class Deaf:
    """Forwards every byte, but for the COMMITs that it was told to lose; those end their connection on both sides.

    A COMMIT lost `after` has been answered by the server, and the client never hears of it.
    """

    def __init__(self, *, port: int) -> None:
        self._server_port = port
        self._left: dict[Moment, int] = {"before": 0, "after": 0}
        self._every = 0
        self.commits = 0
        self.lost = 0
        self.port = 0
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def start(self) -> "Deaf":
        """Begin to take connections at `port`."""
        self._server = await asyncio.start_server(self._take, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def stop(self) -> None:
        """Take no more connections, and cut those that there are."""
        assert self._server is not None
        self._server.close()
        for connection in list(self._connections):
            connection.cancel()
            await asyncio.wait([connection])

    def lose(self, commits: int, *, moment: Moment = "after") -> None:
        """Lose the next so many COMMITs."""
        self._left[moment] = commits

    def lose_every(self, number: int) -> None:
        """Lose the answer to every so-manieth COMMIT from now on; 0 loses none."""
        self._every, self.commits = number, 0

    def url(self, url: str) -> str:
        """Return the way to a database through here."""
        head, _, tail = url.rpartition("@")
        return f"{head}@127.0.0.1:{self.port}/{tail.partition('/')[2]}"

    def _judge(self) -> Moment | None:
        """Count a COMMIT; say whether it is lost, and when."""
        self.commits += 1
        lost: Moment | None = next((moment for moment, left in self._left.items() if left > 0), None)
        if lost is not None:
            self._left[lost] -= 1
        elif self._every and self.commits % self._every == 0:
            lost = "after"
        self.lost += lost is not None
        return lost

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = asyncio.create_task(self._serve(reader, writer))
        self._connections.add(connection)
        connection.add_done_callback(self._connections.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._server_port)
        except OSError:  # the server is away: so is this
            writer.transport.abort()
            return
        cut = asyncio.Event()
        ways = [
            asyncio.create_task(self._to_server(reader, up_writer, cut)),
            asyncio.create_task(self._to_client(up_reader, writer, cut)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.wait(ways)
            for end in (writer, up_writer):
                end.transport.abort()

    async def _to_server(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, cut: asyncio.Event) -> None:
        with suppress(asyncio.IncompleteReadError, OSError):
            started = False
            while True:
                head = await reader.readexactly(4 if not started else 5)
                body = await reader.readexactly(struct.unpack("!I", head[-4:])[0] - 4)
                lost = self._judge() if started and head[:1] == b"Q" and body.startswith(b"COMMIT") else None
                started = started or struct.unpack("!I", body[:4])[0] not in _STARTUP_CODES
                if lost == "before":
                    return
                if lost == "after":
                    cut.set()  # what comes back from now on is the answer: the client has none outstanding
                writer.write(head + body)
                await writer.drain()

    async def _to_client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, cut: asyncio.Event) -> None:
        with suppress(OSError):
            while (data := await reader.read(1 << 16)) and not cut.is_set():
                writer.write(data)
                await writer.drain()
