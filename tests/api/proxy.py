"""A proxy that lets calls through and loses their answers, between the untouched client and the real API."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

_RETRY_COUNT = b"x-stainless-retry-count:"


@asynccontextmanager
async def proxy(
    port: int, loses: Callable[[int], bool], comes: Callable[[int], None] = lambda _: None
) -> AsyncIterator[str]:
    """Yield the URL of a proxy to this port; it asks for each POST, by its retry count, whether to lose the answer.

    A lost answer is one that the server has given in full; the client sees its connection end. `comes` is told the
    count before a POST goes on to the server. A client that gives up is seen by the server, too.
    """

    async def serve(client: asyncio.StreamReader, answers: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):  # the client has gone
            head, body = await _message(client)
            is_post = head.startswith(b"POST")
            if is_post:
                comes(_retries(head))
            upstream, requests = await asyncio.open_connection("127.0.0.1", port)
            requests.write(head.replace(b"\r\n", b"\r\nConnection: close\r\n", 1) + body)
            answer, gone = asyncio.ensure_future(_message(upstream)), asyncio.ensure_future(client.read(1))
            await asyncio.wait([answer, gone], return_when=asyncio.FIRST_COMPLETED)
            requests.close()
            gone.cancel()
            if not answer.done():
                answer.cancel()
            elif not (is_post and loses(_retries(head))):
                answers.write(b"".join(await answer))
                await answers.drain()
        answers.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, limit=1 << 20)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def _message(stream: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """Return a message's head and body."""
    head = await stream.readuntil(b"\r\n\r\n")
    lengths = [line.partition(b":")[2] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    return head, await stream.readexactly(int(lengths[0])) if lengths else b""


def _retries(head: bytes) -> int:
    [count] = [line.partition(b":")[2] for line in head.lower().split(b"\r\n") if line.startswith(_RETRY_COUNT)]
    return int(count)
