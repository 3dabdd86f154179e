"""A backend for the dashboard's tests: it answers, refuses, or waits, as the prompt asks."""

import json
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Model(ThreadingHTTPServer):
    """Listens on 127.0.0.1.

    A prompt that begins with `refuse ` is refused with what follows it while `strict` is set; one that begins with
    `hold ` is answered when `released` is. What is posted to `hook/NAME` is kept in `heard`, by its ids.
    """

    daemon_threads = True

    def __init__(self, *models: str) -> None:
        self.models = models
        self.strict = True
        self.released = threading.Event()
        self.heard: dict[str, list[str]] = defaultdict(list)
        super().__init__(("127.0.0.1", 0), _Answering)

    @property
    def url(self) -> str:
        """What `--backend` takes."""
        return f"http://127.0.0.1:{self.server_port}/v1"


@contextmanager
def serving(*models: str) -> Iterator[Model]:
    """Run one beside a test."""
    with Model(*models) as model:
        thread = threading.Thread(target=model.serve_forever)
        thread.start()
        yield model
        model.released.set()
        model.shutdown()
        thread.join()


class _Answering(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Model

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        """Tell the models; there are no gauges."""
        if self.path.endswith("/models"):
            models = [{"id": name, "object": "model", "created": 1, "owned_by": "tests"} for name in self.server.models]
            self._answer(200, {"object": "list", "data": models})
        else:
            self._answer(404, {})

    def do_POST(self) -> None:
        """Do as the prompt asks."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path.startswith("/v1/hook/"):
            self.server.heard[self.path.rpartition("/")[2]].append(self.headers["webhook-id"])
            self._answer(200, {})
            return
        prompt = str(body["messages"][-1]["content"])
        asked, _, rest = prompt.partition(" ")
        if asked == "refuse" and self.server.strict:
            self._answer(400, {"error": {"message": rest, "code": "refused"}})
            return
        if asked == "hold":
            self.server.released.wait(60)
        message = {"role": "assistant", "content": f"You said: {prompt}"}
        usage = {"prompt_tokens": 20, "completion_tokens": 7, "total_tokens": 27}
        choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
        self._answer(
            200,
            {"id": "c", "object": "chat.completion", "created": 1, "model": body["model"]}
            | {"choices": choices, "usage": usage},
        )

    def _answer(self, status: int, value: dict[str, Any]) -> None:
        content = json.dumps(value).encode()
        with suppress(ConnectionError):  # a cancelled call is not waited for
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)
