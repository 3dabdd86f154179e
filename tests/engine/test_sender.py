"""What is told of a send."""

import contextlib

from backends.servers import Connection, RawServer, answer, start_raw
from batchmill.backends.http import HttpBackend
from batchmill.backends.wire import WireTransport
from batchmill.spec.states import Status
from engine.mill import Mill, lines
from fakeclock import settle

_MODELS = b'{"data":[{"id":"echo"}]}'
_CHAT = b'{"object":"chat.completion","choices":[{"index":0,"message":{"role":"assistant","content":"hi"}}]}'


async def test_what_a_transport_sends_again_is_counted(mill: Mill) -> None:
    """A request that met a closing connection was sent twice: the count says so, and the line has one result."""
    posts: list[bytes] = []

    async def script(raw: RawServer, connection: Connection) -> None:
        first_of_all = raw.connections == 1
        while request := await connection.read_request():
            if request.startswith(b"POST"):
                posts.append(request)
            if first_of_all and len(posts) == 2:
                return  # the second line is read, and not answered
            await connection.write(answer(_CHAT if request.startswith(b"POST") else _MODELS))

    async with contextlib.AsyncExitStack() as stack:
        raw = await start_raw(script, stack)
        backend = HttpBackend(
            url=raw.url, transport=WireTransport(clock=mill.clock, max_reply_bytes=1 << 20), deadline=10
        )
        hand = mill.hand(backend, window=1)
        batch_id = await mill.batch(lines(2))
        await hand.accept()
        while await mill.status(batch_id) is not Status.FINALIZING:
            await hand.runner.step()
            await settle()
            if not hand.lanes[0].pace.in_flight:
                await mill.clock.advance(0.5)
        await mill.clock.advance(1.0)
        await hand.runner.step()  # its watch tells the counts
        await hand.finalizer.step()
        await backend.close()

    sent = hand.metrics.registry.get_sample_value("batchmill_sends_total", {"backend": backend.name})
    assert (len(posts), sent) == (3, 3.0)
    assert posts[1] == posts[2]
    assert [result["custom_id"] for result in await mill.results(batch_id)] == ["r-0", "r-1"]
