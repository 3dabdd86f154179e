"""A real `batchmill serve` for benches: its processes and their memory, and a client that costs next to nothing."""

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ENDPOINT = "/v1/chat/completions"
_BOUNDARY = b"7f3a9c1be04d4c6f8a52d1e09b7c3f64"  # as long as those of common clients: they are searched for
_BEGIN = (
    b'--%b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
    b'--%b\r\nContent-Disposition: form-data; name="file"; filename="in.jsonl"\r\n\r\n'
) % (_BOUNDARY, _BOUNDARY)
_END = b"\r\n--%b--\r\n" % _BOUNDARY
_READ = 1 << 20
_FINAL = ("completed", "failed", "expired", "cancelled")
_ENV = {name: value for name, value in os.environ.items() if not name.startswith("BATCHMILL_")}


def upload(connection: socket.socket, path: Path, *, key: str) -> bytes:
    """Send a file as the form of `POST /v1/files`, by the kernel, and return the whole answer."""
    size = len(_BEGIN) + path.stat().st_size + len(_END)
    head = (
        f"POST /v1/files HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {key}\r\nConnection: close\r\n"
        f"Content-Type: multipart/form-data; boundary={_BOUNDARY.decode()}\r\nContent-Length: {size}\r\n\r\n"
    )
    connection.sendall(head.encode() + _BEGIN)
    with path.open("rb") as stream:
        connection.sendfile(stream)
    connection.sendall(_END)
    return b"".join(iter(lambda: connection.recv(_READ), b""))


@dataclass(slots=True, kw_only=True)
class Server:
    """A running `batchmill serve`, and a key of its organisation."""

    process: "subprocess.Popen[str]"
    port: int
    key: str

    def ask(self, method: str, path: str, body: object = None) -> dict[str, Any]:
        """Ask and return the answer; RuntimeError if it is an error."""
        headers = {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"}
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)) as connection:
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            answer = connection.getresponse()
            said: dict[str, Any] = json.loads(answer.read())
        if answer.status != http.client.OK:
            raise RuntimeError(f"{method} {path}: {answer.status} {said}")
        return said

    def upload(self, path: Path) -> str:
        """Upload a file; return its id."""
        with contextlib.closing(socket.create_connection(("127.0.0.1", self.port))) as connection:
            head, _, body = upload(connection, path, key=self.key).partition(b"\r\n\r\n")
        if b" 200 " not in head:
            raise RuntimeError(f"the upload was refused: {body.decode()}")
        return str(json.loads(body)["id"])

    def create(self, file_id: str, *, window: str = "24h") -> str:
        """Create a batch; return its id."""
        asked = {"input_file_id": file_id, "endpoint": ENDPOINT, "completion_window": window}
        return str(self.ask("POST", "/v1/batches", asked)["id"])

    def until(self, batch_id: str, statuses: Collection[str] = _FINAL, *, every: float = 0.05) -> dict[str, Any]:
        """Return the batch once it has one of these statuses; RuntimeError if it ends with another."""
        while (batch := self.ask("GET", f"/v1/batches/{batch_id}"))["status"] not in statuses:
            if batch["status"] in _FINAL:
                raise RuntimeError(f"the batch ended as {batch['status']}: {batch['errors']}")
            time.sleep(every)
        return batch

    def download(self, file_id: str) -> int:
        """Read a file's content away; return its bytes."""
        with contextlib.closing(socket.create_connection(("127.0.0.1", self.port))) as connection:
            asked = f"GET /v1/files/{file_id}/content HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n"
            connection.sendall(f"{asked}Authorization: Bearer {self.key}\r\n\r\n".encode())
            buffer = memoryview(bytearray(_READ))
            return sum(iter(lambda: connection.recv_into(buffer), 0))

    def processes(self) -> dict[int, str]:
        """Return the process and all that it has started, by pid: serve, api, worker or child."""
        found = {}
        for pid in map(int, filter(str.isdecimal, os.listdir("/proc"))):  # noqa: PTH208 - many times a second
            with contextlib.suppress(OSError):  # it has ended meanwhile
                if os.getsid(pid) == self.process.pid:
                    words = Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").split(b"\0")
                    role = words[-1].decode()
                    found[pid] = "serve" if pid == self.process.pid else role if role in {"api", "worker"} else "child"
        return found

    def pid(self, role: str) -> int | None:
        """Return the pid of the `api` or the `worker`, if it lives."""
        return next((pid for pid, name in self.processes().items() if name == role), None)


@contextlib.contextmanager
def serving(data: Path, *options: str, key: str | None = None) -> Iterator[Server]:
    """Serve a data directory on a free port; `key` is one that it knows, None where this is its first start."""
    command = [sys.executable, "-m", "batchmill", "serve", "--data", str(data), "--port", "0", *options]
    with (data.parent / "serve.log").open("ab") as log:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, text=True, env=_ENV, start_new_session=True
        )
    try:
        yield Server(process=process, port=int(said(process, r"listens on .*:(\d+)")), key=key or _key(process))
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=60)
        finally:
            process.kill()


def _key(process: "subprocess.Popen[str]") -> str:
    return said(process, r"(sk-bm-\w+)")


def said(process: "subprocess.Popen[str]", pattern: str) -> str:
    """Return what the process prints that matches."""
    for line in process.stdout or ():
        if match := re.search(pattern, line):
            return match[1]
    raise RuntimeError(f"the server ended with {process.wait()}")


def own_bytes(pid: int) -> int:
    """Return the memory of a process that no file stands behind (RssAnon); 0 if it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    except OSError:
        return 0
    found = re.search(r"RssAnon:\s+(\d+) kB", status)
    return int(found[1]) << 10 if found else 0
