"""The witness: a model server in a process of its own, which writes down what it sees before it answers.

    python tests/witness.py --port 0 --log FILE --latency-ms 5 --padding 200

It prints `listening on PORT`, and keeps one line of the log for each thing that happens:

    start <Idempotency-Key> <X-Request-Id> <SHA-256 of the body> <CLOCK_MONOTONIC> <what it will answer>
    done <Idempotency-Key> <X-Request-Id> <SHA-256 of the body> <CLOCK_MONOTONIC> <what it has answered>

How it answers is the line's own wish: a prompt that begins with `<behaviour>-<number> `, as the custom_ids of
`faults/input.py` do, names it (`_ANSWERS`). `429x2-ok` is two times 429 and well from then on, `rst-once` one reset;
without a number of times it is so every time. Any other prompt is answered well.

With `--control`, a word a line on the standard input changes all of it: `ok`, `503`, `refuse`, `hang`.
"""

import argparse
import asyncio
import hashlib
import os
import re
import socket
import struct
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

MODEL = "witness"
BAD_REQUEST = b'{"error":{"message":"The witness was told to refuse this.","type":"invalid_request_error"}}'
_MODELS = b'{"object":"list","data":[{"id":"witness","object":"model","created":1700000000,"owned_by":"tests"}]}'
_UNWELL = b'{"error":{"message":"The witness was told to be unwell."}}'
_GARBAGE = b"<html>\xff not JSON"
_WISH = re.compile(rb'"content" ?: ?"([a-z0-9-]+)-\d+ ')
_TIMES = re.compile(r"(?P<what>[a-z0-9-]+?)(?:-(?P<once>once)|x(?P<times>\d+)-ok)?")
_SLOW_SECONDS = 0.25
_DRIPS = 5
_DRIP_SECONDS = 0.03


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
class Exchange:
    """One request, and the connection that it came on."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    body: bytes
    latency: float
    padding: int

    async def reply(self, status: bytes, body: bytes, *, more: bytes = b"") -> None:
        """Send a whole answer."""
        self.writer.write(_head(status, len(body), more) + body)
        await self.writer.drain()

    async def well(self) -> None:
        """Answer as a model server does."""
        await asyncio.sleep(self.latency)
        await self.reply(b"200 OK", answer(self.body, padding=self.padding))

    async def slow(self) -> None:
        """Answer well, but late."""
        await asyncio.sleep(_SLOW_SECONDS)
        await self.well()

    async def drip(self) -> None:
        """Answer well, a few bytes at a time."""
        body = answer(self.body, padding=self.padding)
        text = _head(b"200 OK", len(body)) + body
        size = len(text) // _DRIPS + 1
        for at in range(0, len(text), size):
            self.writer.write(text[at : at + size])
            await self.writer.drain()
            await asyncio.sleep(_DRIP_SECONDS)

    async def refuse(self) -> None:
        """Say that the line is at fault."""
        await self.reply(b"400 Bad Request", BAD_REQUEST)

    async def busy(self) -> None:
        """Ask for patience."""
        await self.reply(b"429 Too Many Requests", _UNWELL, more=b"Retry-After: 0\r\n")

    async def broken(self) -> None:
        """Fail."""
        await self.reply(b"500 Internal Server Error", _UNWELL)

    async def unwell(self) -> None:
        """Say that nothing can be served now."""
        await self.reply(b"503 Service Unavailable", _UNWELL)

    async def garbage(self) -> None:
        """Answer 200 with what is no JSON."""
        await self.reply(b"200 OK", _GARBAGE)

    async def reset(self) -> None:
        """Reset the connection before a byte of the answer."""
        linger = struct.pack("ii", 1, 0)
        self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.writer.transport.abort()

    async def reset_midway(self) -> None:
        """Reset the connection in the middle of the answer."""
        await self._half()
        await self.reset()

    async def end_midway(self) -> None:
        """Close the connection in the middle of the answer."""
        await self._half()
        self.writer.close()

    async def hang(self) -> None:
        """Never answer; return when the client has hung up."""
        await self.reader.read(1)

    async def _half(self) -> None:
        body = answer(self.body, padding=self.padding)
        self.writer.write((_head(b"200 OK", len(body)) + body)[: 100 + len(body) // 2])
        await self.writer.drain()


_ANSWERS: Mapping[str, Callable[[Exchange], Awaitable[None]]] = {
    "ok": Exchange.well,
    "slow": Exchange.slow,
    "drip": Exchange.drip,
    "400": Exchange.refuse,
    "429": Exchange.busy,
    "500": Exchange.broken,
    "503": Exchange.unwell,
    "garbage": Exchange.garbage,
    "rst": Exchange.reset,
    "rst-mid": Exchange.reset_midway,
    "fin-mid": Exchange.end_midway,
    "hang": Exchange.hang,
}
_MODES = ("ok", "503", "refuse", "hang")


@dataclass(slots=True, kw_only=True)
class Witness:
    """What it writes to, and how it answers."""

    log: int
    latency: float
    padding: int
    mode: str = "ok"
    _seen: Counter[bytes] = field(default_factory=Counter)
    _connections: set[asyncio.StreamWriter] = field(default_factory=set)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one connection's requests until the client hangs up."""
        self._connections.add(writer)
        try:
            while not writer.is_closing():
                head = await reader.readuntil(b"\r\n\r\n")
                request, headers = _parse(head)
                body = await reader.readexactly(int(headers.get(b"content-length", b"0")))
                exchange = Exchange(reader=reader, writer=writer, body=body, latency=self.latency, padding=self.padding)
                await self._answer(request, headers, exchange)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client was killed or has hung up: that is what it is for
        finally:
            self._connections.discard(writer)
            writer.close()

    def drop_connections(self) -> None:
        """Close every connection at once."""
        for writer in self._connections:
            writer.transport.abort()

    async def _answer(self, request: bytes, headers: Mapping[bytes, bytes], exchange: Exchange) -> None:
        if request == b"GET /v1/models":
            await (exchange.reply(b"200 OK", _MODELS) if self.mode == "ok" else _ANSWERS[self.mode](exchange))
        elif request == b"POST /v1/chat/completions":
            key = headers[b"idempotency-key"]
            wish = self._wish(key, exchange.body)
            digest = hashlib.sha256(exchange.body).hexdigest().encode()
            seen = b"%s %s %s" % (key, headers[b"x-request-id"], digest)
            self._write(b"start", seen, wish)
            await _ANSWERS[wish](exchange)
            self._write(b"done", seen, wish)
        else:
            await exchange.reply(b"404 Not Found", b"{}")

    def _wish(self, key: bytes, body: bytes) -> str:
        """Say how this try at a line is answered."""
        if self.mode != "ok":
            return self.mode
        found = _WISH.search(body)
        if found is None or (parts := _TIMES.fullmatch(found[1].decode())) is None or parts["what"] not in _ANSWERS:
            return "ok"
        self._seen[key] += 1
        times = 1 if parts["once"] else int(parts["times"] or sys.maxsize)
        return parts["what"] if self._seen[key] <= times else "ok"

    def _write(self, word: bytes, seen: bytes, wish: str) -> None:
        os.write(self.log, b"%s %s %.6f %s\n" % (word, seen, time.monotonic(), wish.encode()))


def _head(status: bytes, length: int, more: bytes = b"") -> bytes:
    return b"HTTP/1.1 %s\r\nContent-Type: application/json\r\n%sContent-Length: %d\r\n\r\n" % (status, more, length)


def _parse(head: bytes) -> tuple[bytes, dict[bytes, bytes]]:
    """Return method and path, and the headers by their names in lower case."""
    first, *lines = head.rstrip().split(b"\r\n")
    pairs = (line.partition(b":") for line in lines)
    return first.rpartition(b" ")[0], {name.lower(): value.strip() for name, _, value in pairs}


async def _listen(witness: Witness, port: int) -> asyncio.Server:
    return await asyncio.start_server(witness.serve, "127.0.0.1", port, backlog=1024)


async def _obey(witness: Witness, server: asyncio.Server) -> None:
    """Take modes from the standard input until it closes."""
    port = server.sockets[0].getsockname()[1]
    orders = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    while word := (await orders.readline()).decode().strip():
        if word not in _MODES:
            raise ValueError(f"no such mode: {word}")
        if word == "refuse":
            server.close()
        elif not server.is_serving():
            server = await _listen(witness, port)
        witness.mode = word
        witness.drop_connections()  # an outage ends what is under way, and so does its end


async def _main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--port", type=int, default=0)
    options.add_argument("--log", type=Path, required=True)
    options.add_argument("--latency-ms", type=float, default=0.0)
    options.add_argument("--padding", type=int, default=0)
    options.add_argument("--control", action="store_true")
    given = options.parse_args()
    log = os.open(given.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    witness = Witness(log=log, latency=given.latency_ms / 1000, padding=given.padding)
    server = await _listen(witness, given.port)
    print("listening on", server.sockets[0].getsockname()[1], flush=True)  # noqa: T201 - told to the one who started it
    await (_obey(witness, server) if given.control else server.serve_forever())


if __name__ == "__main__":
    asyncio.run(_main())
