"""The Scout: what backends serve, and how they are."""

import asyncio

from aiohttp import web
from aiohttp.test_utils import TestServer, unused_port
from structlog.testing import capture_logs

from batchmill.backends.http import HttpBackend
from batchmill.backends.wire import WireTransport
from batchmill.schedule.retry import Done, Later
from batchmill.store.lane import forget_backends
from batchmill.store.model import list_backends, list_models
from engine.faulty import FaultyDatabase
from engine.mill import Mill


async def test_a_backend_that_comes_later_is_found(mill: Mill) -> None:
    """A backend that is away at first has a row that says why; when it comes, its models are known."""

    async def models(_request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "late"}]})

    app = web.Application()
    app.add_routes([web.get("/v1/models", models)])
    port = unused_port()
    transport = WireTransport(clock=mill.clock, max_reply_bytes=1 << 20)
    backend = HttpBackend(url=f"http://127.0.0.1:{port}/v1", transport=transport, deadline=5)
    scout = mill.hand(backend).scout
    await scout.step()
    (state,) = await mill.database.read(list_backends)
    assert not state.well
    assert state.reason is not None
    async with TestServer(app, port=port):
        await mill.clock.advance(10)
        await scout.step()
    (state,) = await mill.database.read(list_backends)
    assert state.well
    assert [name for name, _ in await mill.database.read(list_models)] == ["late"]
    await backend.close()


async def test_a_circuit_that_opens_and_closes_is_told(mill: Mill) -> None:
    """A backend that lists its models and fails over lines is unwell, with the reason, until a line has been done."""
    hand = mill.hand(mill.echo())
    await hand.scout.step()
    pace = hand.lanes[0].pace
    pace.sent(0.0)
    pace.answered(Later(after=1.0, unwell=True), mill.clock.boot(), why="it answered with status 401")
    await hand.scout.step()
    (state,) = await mill.database.read(list_backends)
    assert (state.well, state.reason) == (False, "it answered with status 401")
    await mill.clock.advance(1)
    await hand.scout.step()
    pace.sent(mill.clock.boot())
    pace.answered(Done(succeeded=True), mill.clock.boot())
    await hand.scout.step()
    (state,) = await mill.database.read(list_backends)
    assert (state.well, state.reason) == (True, None)


async def test_a_backend_that_hangs_holds_no_other_up(mill: Mill) -> None:
    """While one backend takes its time over its models, another is asked again and again."""
    hangs = asyncio.Event()

    async def models(_request: web.Request) -> web.Response:
        await hangs.wait()
        return web.json_response({"data": [{"id": "slow"}]})

    app = web.Application()
    app.add_routes([web.get("/v1/models", models)])
    async with TestServer(app) as server:
        transport = WireTransport(clock=mill.clock, max_reply_bytes=1 << 20)
        slow = HttpBackend(url=str(server.make_url("/v1")), transport=transport, deadline=5)
        hand = mill.hand(slow, mill.echo())
        await hand.scout.step()
        assert [name for name, _ in await mill.database.read(list_models)] == ["echo"]
        hangs.set()
        await hand.scout.step()
        await slow.close()
    assert [name for name, _ in await mill.database.read(list_models)] == ["echo", "slow"]


async def test_backends_taken_out_are_forgotten(mill: Mill) -> None:
    """The rows of backends that are no longer configured go; the models they served stay known."""
    await mill.hand(mill.echo(models=("a",))).scout.step()
    transport = WireTransport(clock=mill.clock, max_reply_bytes=1 << 20)
    other = HttpBackend(url=f"http://127.0.0.1:{unused_port()}/v1", transport=transport, deadline=5)
    await mill.hand(other).scout.step()
    assert [state.name for state in await mill.database.read(list_backends)] == [other.name]
    assert [name for name, _ in await mill.database.read(list_models)] == ["a"]
    await other.close()


async def test_a_backend_whose_row_has_gone_is_told_again(mill: Mill) -> None:
    """Another worker's clearing may meet our first word in the very moment: then the next question brings it back."""
    hand = mill.hand(mill.echo(name="a"))
    await hand.scout.step()
    await mill.database.write(lambda tx: forget_backends(tx, worker_id="another", names=[]))
    assert await mill.database.read(list_backends) == []
    await mill.clock.advance(31)
    await hand.scout.step()
    (state,) = await mill.database.read(list_backends)
    assert (state.name, state.well) == ("a", True)


async def test_a_full_database_is_no_fault_of_the_scout(mill: Mill) -> None:
    """What cannot be kept for want of space is kept as soon as there is some; it is logged once."""
    mill.database = database = FaultyDatabase(mill.database)
    scout = mill.hand(mill.echo()).scout
    database.full = True
    with capture_logs() as logged:
        for _ in range(3):
            await scout.step()
            await mill.clock.advance(31)
    assert [entry["event"] for entry in logged] == ["not kept: the disk is full"]
    assert await mill.database.read(list_models) == []
    database.full = False
    await scout.step()
    assert [name for name, _ in await mill.database.read(list_models)] == ["echo"]


async def test_a_backend_that_is_asked_is_as_it_was(mill: Mill) -> None:
    """While an unwell backend takes its time over the next answer it stays unwell, since the same second."""
    asked, goes = [], asyncio.Event()

    async def models(request: web.Request) -> web.Response:
        asked.append(request)
        if len(asked) > 1:
            await goes.wait()
        return web.Response(status=503)

    app = web.Application()
    app.add_routes([web.get("/v1/models", models)])
    async with TestServer(app) as server:
        transport = WireTransport(clock=mill.clock, max_reply_bytes=1 << 20)
        backend = HttpBackend(url=str(server.make_url("/v1")), transport=transport, deadline=5)
        hand = mill.hand(backend)
        await hand.scout.step()
        states = [await mill.database.read(list_backends)]
        await mill.clock.advance(3)
        await hand.scout.step()
        states.append(await mill.database.read(list_backends))
        assert len(asked) == 2
        goes.set()
        await hand.scout.step()
        states.append(await mill.database.read(list_backends))
        await backend.close()
    assert states[0] == states[1] == states[2]
    assert [state.well for state in states[0]] == [False]
