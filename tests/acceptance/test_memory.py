"""Whatever strangers send, the server's memory stays within 64 MiB of what it was (reliability, groups A to D)."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from acceptance.lines import MODEL, joined, plain_lines
from acceptance.serving import Processes, Server, until

_MOST = 64 << 20
_MANY = 200 << 20  # bytes that a client would send, if it were let
_PIECE = b"x" * (1 << 20)
_HEAD = b'Content-Disposition: form-data; name="file"; filename="a.jsonl"\r\n'


def _form(*parts: bytes) -> bytes:
    return b"".join(b"--boundary\r\n" + part for part in parts)


FILE = _form(_HEAD + b"\r\n")
CASES: dict[str, tuple[str, bytes, bytes]] = {  # path, what comes first, what comes again and again
    "a preamble": ("/v1/files", b"", _PIECE),
    "an epilogue": ("/v1/files", FILE + b"{}\r\n--boundary--\r\n", _PIECE),
    "a part header": ("/v1/files", _form(b"X-Long: "), _PIECE),
    "many part headers": ("/v1/files", _form(), b"X-A: 1\r\n" * 100_000),
    "a filename": ("/v1/files", _form(b'Content-Disposition: form-data; name="file"; filename="'), _PIECE),
    "a text part": ("/v1/files", _form(b'Content-Disposition: form-data; name="purpose"\r\n\r\n'), _PIECE),
    "almost-boundaries": ("/v1/files", FILE, b"\r\n--boundar" * 100_000),
    "many parts": ("/v1/files", b"", _form(b'Content-Disposition: form-data; name="x"\r\n\r\n1\r\n') * 20_000),
    "no form": ("/v1/files", b"", _PIECE),
    "JSON": ("/v1/batches", b'{"input_file_id":"', _PIECE),
}


@dataclass(slots=True)
class Peak:
    """The most memory of its own that a process had, in bytes."""

    base: int
    most: int

    @property
    def growth(self) -> int:
        """By how much it grew."""
        return self.most - self.base


@contextmanager
def watched(pid: int) -> Iterator[Peak]:
    """Look at a process's memory all the time."""
    before = _own_bytes(pid)
    peak, over = Peak(before, before), threading.Event()

    def look() -> None:
        while not over.wait(0.002):
            peak.most = max(peak.most, _own_bytes(pid))

    looking = threading.Thread(target=look)
    looking.start()
    try:
        yield peak
    finally:
        over.set()
        looking.join()


def _own_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return int(status.split("RssAnon:")[1].split()[0]) << 10


def _send(server: Server, key: str, path: str, first: bytes, again: bytes, *, form: bool = True) -> bytes:
    """Send until the server answers, closes or has had enough; return how its answer begins."""
    kind = "multipart/form-data; boundary=boundary" if form else "application/x-www-form-urlencoded"
    head = (
        f"POST {path} HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {key}\r\nContent-Type: {kind}\r\n"
        "Transfer-Encoding: chunked\r\n\r\n"
    )
    with (
        closing(socket.create_connection(("127.0.0.1", server.port), timeout=20)) as connection,
        suppress(BrokenPipeError, ConnectionResetError),
    ):
        connection.sendall(head.encode())
        for piece in filter(None, (first, *[again] * (_MANY // len(again)))):
            connection.sendall(b"%x\r\n%b\r\n" % (len(piece), piece))
            if _has_said(connection):
                break
        return connection.recv(4096)
    return b""


def _has_said(connection: socket.socket) -> bool:
    connection.settimeout(0.001)
    try:
        return bool(connection.recv(1, socket.MSG_PEEK))
    except TimeoutError:
        return False
    finally:
        connection.settimeout(20)


@pytest.fixture(scope="module")
def _proc() -> None:
    if not Path("/proc/self/status").exists():
        pytest.skip("NOT RUN: this system does not tell a process's memory in /proc")


@pytest.mark.usefixtures("_proc")
def test_no_upload_takes_memory(processes: Processes) -> None:
    """Each is refused or read away in bounded memory, sixteen at a time, too; and the server still answers."""
    server = processes.ready("--backend", "echo:")
    api, key = server.child("api"), processes.key(server)
    client = processes.client(server, key)
    client.files.create(file=("in.jsonl", joined(plain_lines(10))), purpose="batch")
    grown: dict[str, int] = {}
    for name, (path, first, again) in CASES.items():
        with watched(api) as peak:
            said = _send(server, key, path, first, again, form=name not in {"no form", "JSON"})
        assert not said.startswith(b"HTTP/1.1 5"), (name, said)
        grown[name] = peak.growth
    with watched(api) as peak:
        all_here = threading.Barrier(32)
        _together([lambda: _stalled(server, key, FILE + b"\r\n--boundar" * 90_000, all_here)] * 32)
    grown["32 stalled uploads of almost-boundaries"] = peak.growth
    print({name: f"{size / 2**20:.1f} MiB" for name, size in grown.items()})  # noqa: T201 - the figures
    assert max(grown.values()) <= _MOST, grown
    assert client.files.list().data


def _stalled(server: Server, key: str, text: bytes, all_here: threading.Barrier) -> None:
    """Send the beginning of an upload, and hold it there until all have come so far."""
    head = (
        f"POST /v1/files HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {key}\r\n"
        f"Content-Type: multipart/form-data; boundary=boundary\r\nContent-Length: {2 * len(text)}\r\n\r\n"
    )
    with closing(socket.create_connection(("127.0.0.1", server.port), timeout=20)) as connection:
        with suppress(BrokenPipeError, ConnectionResetError):  # it found no slot
            connection.sendall(head.encode() + text)
        all_here.wait(20)


def _together(calls: list[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=call) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@pytest.mark.usefixtures("_proc")
def test_no_input_takes_memory(processes: Processes) -> None:
    """Neither a line without an end nor 200,000 bad ones: both are checked in a child, whose memory benches measure."""
    server = processes.ready("--backend", "echo:")
    client = processes.client(server, processes.key(server))
    worker = server.child("worker")
    bad = b'{"custom_id":"r","method":"GET","url":"/v1/nope","body":{"model":"%b"}}\n' % MODEL.encode()
    with watched(worker) as peak, watched(server.child("api")) as api:
        for text in (b"x" * (80 << 20), bad * 200_000):
            file = client.files.create(file=("in.jsonl", text), purpose="batch")
            made = client.batches.create(
                input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
            )
            until(lambda made=made: client.batches.retrieve(made.id).status == "failed", 60)
            assert len(client.batches.with_raw_response.retrieve(made.id).content) < 1 << 20
    print({"worker": peak.growth >> 20, "api": api.growth >> 20})  # noqa: T201 - the figures
    assert peak.growth <= _MOST
    assert api.growth <= _MOST
