"""A client that says what no HTTP library would, byte by byte, and reads what it is told."""

import io
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from http.client import HTTPResponse

from api.served import Answer, Served

_SECONDS = 30.0  # within so many the server answers, or closes; a test fails that waits for longer


@contextmanager
def connected(served: Served) -> Iterator[socket.socket]:
    """Connect to a running API."""
    with closing(socket.create_connection(("127.0.0.1", served.port), timeout=_SECONDS)) as connection:
        yield connection


def told(connection: socket.socket) -> bytes:
    """Read until the server closes."""
    said = b""
    with suppress(ConnectionResetError):  # it closed while something was still on the way
        while chunk := connection.recv(1 << 16):
            said += chunk
    return said


def exchange(served: Served, sent: bytes) -> list[Answer]:
    """Send these bytes and return all answers up to the connection's end."""
    with connected(served) as connection:
        with suppress(BrokenPipeError, ConnectionResetError):  # refused before the last of them
            connection.sendall(sent)
        return answers(told(connection))


def answers(said: bytes) -> list[Answer]:
    """Read every answer in these bytes; there is nothing between them nor behind."""
    stream, found = _Said(said), []
    while stream.bytes.tell() < len(said):
        got = HTTPResponse(stream)  # type: ignore[arg-type] # it only wants a file of it
        got.begin()
        found.append(Answer(status=got.status, headers={k.lower(): v for k, v in got.getheaders()}, body=got.read()))
    return found


class _Said:
    """Bytes in a socket's place."""

    def __init__(self, said: bytes) -> None:
        self.bytes = _Unclosed(said)

    def makefile(self, *_: object) -> io.BytesIO:
        return self.bytes


class _Unclosed(io.BytesIO):
    """A stream that the reader of one answer leaves open for the next one's."""

    def close(self) -> None:
        pass
