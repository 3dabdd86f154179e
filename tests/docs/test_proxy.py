"""The proxy that docs/scale.md shows, run as it stands there: nginx with TLS in front of a real server."""

import hashlib
import json
import shutil
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest
from openai import OpenAI

from acceptance.serving import Server, clean_environment, processes_in, until
from docs.page import ROOT, blocks
from postgres import free_port

_PAGE = ROOT / "docs" / "scale.md"
_UNPACKED = Path(sys.prefix, "nginx", "usr", "sbin", "nginx")  # where the Makefile puts Debian's
_SIZE = 50 << 20
_LINE = (
    b'{"custom_id": "%d", "method": "POST", "url": "/v1/chat/completions", "body":'
    b' {"model": "m", "messages": [{"role": "user", "content": "Hello"}]}}\n'
)
# What stands around a page's block in a configuration of its own: one process, and nothing outside the folder.
_AROUND = """
daemon off; master_process off; pid {folder}/pid; error_log {folder}/errors;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/bodies; proxy_temp_path {folder}/answers; fastcgi_temp_path {folder}/f;
    uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
    {block}
}}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Front:
    """A server behind the page's proxy: `port` is the proxy's, `trust` knows its certificate."""

    server: Server
    port: int
    trust: ssl.SSLContext

    def client(self, *, address: str = "127.0.0.1") -> httpx2.Client:
        """Return a client that comes from this address of the machine."""
        transport = httpx2.HTTPTransport(verify=self.trust, local_address=address)
        return httpx2.Client(base_url=f"https://127.0.0.1:{self.port}/v1", transport=transport, timeout=20.0)


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[_Front]:
    """The page's proxy in front of a server whose one line takes a minute, as it would stand on the page's machine."""
    folder = tmp_path_factory.mktemp("proxy")
    certificate, key, port = folder / "batch.pem", folder / "batch.key", free_port()
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", "2", "-subj", "/CN=batch.example.com", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*command, "-keyout", str(key), "-out", str(certificate)], capture_output=True, check=True)
    with processes_in(folder) as processes:
        environment = clean_environment(BATCHMILL_TRUSTED_PROXIES="127.0.0.1")
        server = processes.serve("--backend", "echo:?latency_ms=60000#m", environment=environment)
        (block,) = (block.text for block in blocks(_PAGE) if block.language == "nginx")
        for shown, here in {
            "127.0.0.1:8000": f"127.0.0.1:{server.port}",
            "listen 443 ssl": f"listen 127.0.0.1:{port} ssl",
            "/etc/ssl/batch.pem": str(certificate),
            "/etc/ssl/batch.key": str(key),
        }.items():
            assert shown in block
            block = block.replace(shown, here)
        (folder / "nginx.conf").write_text(_AROUND.format(folder=folder, block=block))
        nginx = subprocess.Popen([_nginx(), "-e", str(folder / "errors"), "-c", str(folder / "nginx.conf")])
        try:
            until(lambda: _answers(port), 30.0)
            yield _Front(server=server, port=port, trust=ssl.create_default_context(cafile=certificate))
        finally:
            nginx.terminate()
            nginx.wait()


def _nginx() -> str:
    found = str(_UNPACKED) if _UNPACKED.exists() else shutil.which("nginx") or shutil.which("/usr/sbin/nginx")
    assert found, "nginx is missing: make .venv/nginx"
    return found


def _answers(port: int) -> bool:
    with socket.socket() as asked:
        return asked.connect_ex(("127.0.0.1", port)) == 0


def test_a_large_file_goes_through_as_it_comes_and_comes_back_the_same(front: _Front) -> None:
    """Of an upload of 50 MB the server has a part while the rest is not sent yet; the download is the same bytes."""
    lines = b"".join(_LINE % number for number in range(_SIZE // len(_LINE)))
    head = b'--b\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
    head += b'--b\r\ncontent-disposition: form-data; name="file"; filename="big.jsonl"\r\n\r\n'
    end = b"\r\n--b--\r\n"
    length = len(head) + len(lines) + len(end)

    def body() -> Iterator[bytes]:
        yield head + lines[: len(lines) // 2]
        until(lambda: _stored(front) > len(lines) // 4, 30.0)  # else the proxy keeps it to itself
        yield lines[len(lines) // 2 :] + end

    with front.client() as client:
        headers = {"authorization": f"Bearer {front.server.key}", "content-type": "multipart/form-data; boundary=b"}
        made = client.post("/files", content=body(), headers=headers | {"content-length": str(length)})
        assert made.status_code == httpx2.codes.OK, made.text
        digest = hashlib.sha256()
        with client.stream("GET", f"/files/{made.json()['id']}/content", headers=headers) as content:
            for piece in content.iter_raw():
                digest.update(piece)
    assert digest.digest() == hashlib.sha256(lines).digest()


def _stored(front: _Front) -> int:
    """Return how many bytes the server has on its disk, unfinished files included."""
    return sum(path.stat().st_size for path in (front.server.data / "blobs").rglob("*") if path.is_file())


def test_events_are_not_kept_back(front: _Front) -> None:
    """The first event of a batch's progress arrives while it goes on, and so does the one that a pause makes."""
    headers = {"authorization": f"Bearer {front.server.key}"}
    with front.client() as client:
        openai = OpenAI(base_url=f"https://127.0.0.1:{front.port}/v1", api_key=front.server.key, http_client=client)
        file = openai.files.create(file=("one.jsonl", _LINE % 1), purpose="batch")
        batch = openai.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
        stream_of = {"accept": "text/event-stream"} | headers
        with client.stream("GET", f"/batches/{batch.id}/progress", headers=stream_of) as stream:
            lines = stream.iter_lines()
            assert next(lines) == "event: progress"
            with front.client() as other:
                other.post(f"/batches/{batch.id}/pause", headers=headers).raise_for_status()
            told = (json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: "))
            assert any(progress["paused_at"] for progress in told)


def test_a_client_has_its_own_address_behind_the_proxy(front: _Front) -> None:
    """Bad keys from one address slow down that one alone, and a client cannot say that it comes from elsewhere."""

    def tried(address: str, **headers: str) -> int:
        with front.client(address=address) as client:
            return client.get("/models", headers={"authorization": "Bearer sk-bad", **headers}).status_code

    with front.client(address="127.0.0.2") as client:
        codes = {client.get("/models", headers={"authorization": "Bearer sk-bad"}).status_code for _ in range(61)}
    assert codes == {httpx2.codes.UNAUTHORIZED, httpx2.codes.TOO_MANY_REQUESTS}
    assert tried("127.0.0.2", **{"x-forwarded-for": "203.0.113.9"}) == httpx2.codes.TOO_MANY_REQUESTS
    assert tried("127.0.0.3") == httpx2.codes.UNAUTHORIZED
