"""A server that speaks the contract's routes and no others: our own behind a proxy that answers 404 to the rest."""

import re
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

_CONTRACT = re.compile(r"/v1/(models|files(/[^/?]+(/content)?)?|batches(/[^/?]+(/cancel)?)?)(\?.*)?")
_HOP = frozenset({"transfer-encoding", "connection", "date", "server"})
_REFUSAL = b'{"error": {"message": "Invalid URL", "type": "invalid_request_error", "param": null, "code": null}}'


@contextmanager
def contract_only(port: int) -> Iterator[str]:
    """Yield the URL of a proxy to this port."""

    class Proxy(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _pass_on(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
            if not _CONTRACT.fullmatch(self.path):
                self._answer(404, {"Content-Type": "application/json"}, _REFUSAL)
                return
            with closing(HTTPConnection("127.0.0.1", port, timeout=60)) as upstream:
                upstream.request(self.command, self.path, body=body or None, headers=dict(self.headers))
                answer = upstream.getresponse()
                self._answer(answer.status, dict(answer.getheaders()), answer.read())

        def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
            self.send_response(status)
            for name, value in headers.items():
                if name.lower() not in {*_HOP, "content-length"}:
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_DELETE = _pass_on  # noqa: N815 - the library's names

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
