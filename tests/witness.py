"""The witness: a model server in a process of its own, which writes down what it sees before it answers.

    python tests/witness.py --port 0 --log FILE --latency-ms 5 --padding 200

It prints `listening on PORT`, and keeps one line of the log for each thing that happens:

    start <Idempotency-Key> <X-Request-Id> <SHA-256 of the body>
    done <Idempotency-Key> <X-Request-Id> <SHA-256 of the body>
"""

import argparse
import asyncio
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

MODEL = "witness"
_MODELS = b'{"object":"list","data":[{"id":"witness","object":"model","created":1700000000,"owned_by":"tests"}]}'


def answer(body: bytes, *, padding: int = 0) -> bytes:
    """Return the reply to a body: always the same, with spacing, numbers and repeated keys that no encoder would write.

    Args:
        body: The request's body.
        padding: Characters of text in the reply, beside those that tell one reply from another.
    """
    digest = hashlib.sha256(body).hexdigest().encode()
    message = b'{"role":"assistant","content":"%s \\u00e9 \xc3\xa9 %s"}' % (digest, b"." * padding)
    return (
        b'{ "id":"chatcmpl-%s",\t"object" : "chat.completion","created":1700000000,"model":"witness",'
        b'"choices":[{"index":0,"message":%s,"finish_reason":"stop"}],'
        b'"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5},'
        b'"x":1.10e+2,"x":123456789012345678901234567890}' % (digest[:24], message)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Witness:
    """What it writes to, and how it answers."""

    log: int
    latency: float
    padding: int

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one connection's requests until the client hangs up."""
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                request, headers = _parse(head)
                body = await reader.readexactly(int(headers.get(b"content-length", b"0")))
                status, reply = await self._reply(request, headers, body)
                writer.write(
                    b"HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
                    % (status, len(reply), reply)
                )
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client was killed or has hung up: that is what it is for
        finally:
            writer.close()

    async def _reply(self, request: bytes, headers: Mapping[bytes, bytes], body: bytes) -> tuple[bytes, bytes]:
        if request == b"GET /v1/models":
            return b"200 OK", _MODELS
        if request != b"POST /v1/chat/completions":
            return b"404 Not Found", b"{}"
        digest = hashlib.sha256(body).hexdigest().encode()
        seen = b"%s %s %s\n" % (headers[b"idempotency-key"], headers[b"x-request-id"], digest)
        os.write(self.log, b"start " + seen)
        await asyncio.sleep(self.latency)
        os.write(self.log, b"done " + seen)
        return b"200 OK", answer(body, padding=self.padding)


def _parse(head: bytes) -> tuple[bytes, dict[bytes, bytes]]:
    """Return method and path, and the headers by their names in lower case."""
    first, *lines = head.rstrip().split(b"\r\n")
    pairs = (line.partition(b":") for line in lines)
    return first.rpartition(b" ")[0], {name.lower(): value.strip() for name, _, value in pairs}


async def _main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--port", type=int, default=0)
    options.add_argument("--log", type=Path, required=True)
    options.add_argument("--latency-ms", type=float, default=0.0)
    options.add_argument("--padding", type=int, default=0)
    given = options.parse_args()
    log = os.open(given.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    witness = Witness(log=log, latency=given.latency_ms / 1000, padding=given.padding)
    server = await asyncio.start_server(witness.serve, "127.0.0.1", given.port, backlog=1024)
    print("listening on", server.sockets[0].getsockname()[1], flush=True)  # noqa: T201 - told to the one who started it
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_main())
