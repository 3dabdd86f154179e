"""A server that answers as it is told to, over real HTTP, and remembers what it was asked."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import aiohttp
from aiohttp import web

from batchmill.client.http import Client, base_of

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(slots=True)
class Odd:
    """What it has been asked, and what it answers next; the last answer stays."""

    answers: list[Answer] = field(default_factory=list)
    asked: list[web.Request] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    slept: list[float] = field(default_factory=list)
    port: int = 0

    async def sleep(self, seconds: float) -> None:
        """Take no time."""
        self.slept.append(seconds)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(request)
        self.bodies.append(await request.read())
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return await answer(request)


def told(body: object, *, status: int = 200, **headers: str) -> Answer:
    """Return an answer of JSON."""

    async def answer(_: web.Request) -> web.StreamResponse:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return web.json_response(body, status=status, headers=named)

    return answer


def refused(status: int, message: str = "no", code: str | None = None, **headers: str) -> Answer:
    """Return an error in the contract's envelope."""
    return told({"error": {"message": message, "type": "t", "code": code, "param": None}}, status=status, **headers)


def text(body: bytes, *, status: int = 200, media_type: str = "application/jsonl", **headers: str) -> Answer:
    """Return an answer of bytes."""

    async def answer(_: web.Request) -> web.StreamResponse:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return web.Response(body=body, status=status, content_type=media_type, headers=named)

    return answer


def broken(body: bytes, *, status: int = 200, media_type: str = "application/jsonl", **headers: str) -> Answer:
    """Return an answer that breaks off behind these bytes."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(
            status=status, headers={name.replace("_", "-"): value for name, value in headers.items()}
        )
        response.content_type = media_type
        response.content_length = len(body) + 1000
        await response.prepare(request)
        await response.write(body)
        assert request.transport is not None
        request.transport.close()
        return response

    return answer


async def lost(request: web.Request) -> web.StreamResponse:
    """Give no answer at all."""
    assert request.transport is not None
    request.transport.close()
    return web.Response()


@asynccontextmanager
async def odd_server() -> AsyncIterator[tuple[Odd, Client]]:
    """Yield a server and a client of it that takes no time to wait."""
    odd = Odd()
    app = web.Application(client_max_size=1 << 26)
    app.router.add_route("*", "/{path:.*}", odd._answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    odd.port = runner.addresses[0][1]
    async with aiohttp.ClientSession() as session:
        base = base_of(f"http://127.0.0.1:{odd.port}")
        yield odd, Client(session=session, base=base, key="sk-secret", say=odd.said.append, sleep=odd.sleep)
    await runner.cleanup()
