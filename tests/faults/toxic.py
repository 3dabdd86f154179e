"""A reverse proxy that does to HTTP what networks and object stores do: 500, SlowDown, a reset, a lost reply, silence.

It forwards a request as it came, its Host too, which an S3 signature covers.
"""

import http.client
import random
import socket
import struct
import threading
from collections import Counter, deque
from collections.abc import Callable
from enum import Enum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Chooser = Callable[[str, str], "Fault | None"]  # by method and path

_LIMIT = 60.0  # seconds; nothing in the tests takes longer
_SLOW_DOWN = b'<?xml version="1.0"?><Error><Code>SlowDown</Code><Message>Reduce your request rate.</Message></Error>'


class Fault(Enum):
    """What becomes of a request."""

    ERROR = "500"
    SLOW_DOWN = "503 SlowDown"
    RESET = "reset"  # before anything is done
    LOST_REPLY = "lost reply"  # done, and nobody hears of it
    HANG = "hang"  # no answer until the proxy is well again; then a reset, with nothing done


class Toxic:
    """A proxy in front of a server of 127.0.0.1; well until it is told otherwise. `met` counts the faults."""

    def __init__(self, upstream: int) -> None:
        self.upstream = upstream
        self.met: Counter[Fault] = Counter()
        self.requests: list[tuple[str, str]] = []
        self._planned: deque[tuple[Chooser, int]] = deque()
        self._chooser: Chooser | None = None
        self._well = threading.Event()
        self._well.set()
        self._lock = threading.Lock()
        self._server = _Server(self)
        self.port = int(self._server.server_address[1])
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()

    def close(self) -> None:
        """Stop; requests under way are cut."""
        self.heal()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def once(self, fault: Fault, *, method: str = "", path: str = "", times: int = 1) -> None:
        """Let the next requests of a method, with this in their path, meet a fault."""

        def fits(asked: str, target: str) -> Fault | None:
            return fault if asked.startswith(method) and path in target else None

        with self._lock:
            self._planned += [(fits, times)]

    def fail(self, *faults: Fault, share: float = 1.0, seed: int = 0) -> None:
        """Let a share of all requests meet one of these faults, until `heal`."""
        draw = random.Random(seed)  # noqa: S311 - a test's own dice

        def choose(_method: str, _path: str) -> Fault | None:
            with self._lock:
                return draw.choice(faults) if draw.random() < share else None

        self._well.clear()
        self._chooser = choose

    def heal(self) -> None:
        """Let all go well from now on."""
        with self._lock:
            self._planned.clear()
        self._chooser = None
        self._well.set()

    def choose(self, method: str, path: str) -> Fault | None:
        """Return what is to become of a request."""
        self.requests.append((method, path))
        with self._lock:
            for at, (chooser, times) in enumerate(self._planned):
                fault = chooser(method, path)
                if fault is not None:
                    if times == 1:
                        del self._planned[at]
                    else:
                        self._planned[at] = (chooser, times - 1)
                    break
            else:
                fault = None
        if fault is None and self._chooser is not None:
            fault = self._chooser(method, path)
        if fault is not None:
            self.met[fault] += 1
        return fault

    def wait_until_well(self) -> None:
        """Block until `heal`."""
        self._well.wait(_LIMIT)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, toxic: Toxic) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.toxic = toxic


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = _LIMIT
    server: _Server

    def handle_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fault = self.server.toxic.choose(self.command, self.path)
        if fault is Fault.ERROR:
            self._answer(500, {}, b"")
        elif fault is Fault.SLOW_DOWN:
            self._answer(503, {}, _SLOW_DOWN)
        elif fault is Fault.RESET:
            self._reset()
        elif fault is Fault.HANG:
            self.server.toxic.wait_until_well()
            self._reset()
        else:
            self._forward(body, lose=fault is Fault.LOST_REPLY)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_any  # noqa: N815 - the names are the library's

    def _forward(self, body: bytes, *, lose: bool) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.toxic.upstream, timeout=_LIMIT)
        try:
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in ("connection", "expect"):
                    connection.putheader(name, value)
            connection.endheaders(body)
            got = connection.getresponse()
            content = got.read()
        except (OSError, http.client.HTTPException):  # the server itself is away
            self._reset()
            return
        finally:
            connection.close()
        if lose:
            self._reset()
        else:
            self._answer(got.status, dict(got.getheaders()), content)

    def _answer(self, status: int, headers: dict[str, str], content: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in ("connection", "transfer-encoding", "content-length"):
                self.send_header(name, value)
        length = headers.get("Content-Length", len(content)) if self.command == "HEAD" else len(content)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(b"" if self.command == "HEAD" else content)

    def _reset(self) -> None:
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.rfile.close()
        self.connection.close()

    def log_message(self, *_: object) -> None:
        """Say nothing."""
