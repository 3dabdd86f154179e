"""Embeddings calls that go as one, against a real server, on a clock that a test moves."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from backends.servers import Connection, RawServer, Serve, ServeRaw, answer
from batchmill.backends.backend import Call, Reply
from batchmill.backends.echo import EchoBackend
from batchmill.backends.http import HttpBackend
from batchmill.backends.packing import PackingBackend
from batchmill.backends.wire import WireTransport
from batchmill.schedule.retry import Fault
from fakeclock import FakeClock, settle

EMBEDDINGS = "/v1/embeddings"
WAIT = 0.002  # what a line waits for others at most
Pack = Callable[[str], PackingBackend]


def call(text: object = "a", number: int = 0, **more: Any) -> Call:  # noqa: ANN401 - members of a call, or of its body
    """One attempt at a line."""
    members = {name: more.pop(name) for name in ("endpoint", "once") if name in more}
    body = json.dumps({"model": "m", "input": text, **more}).encode()
    names = {"request_id": f"req_{number}", "idempotency_key": f"line_{number}"}
    return Call(**{"endpoint": EMBEDDINGS, "body": body, **names, **members})


def embedded(order: dict[str, Any]) -> dict[str, object]:
    """Answer as an engine does: each input's vector is its length."""
    asked = [order["input"]] if isinstance(order["input"], str) else order["input"]
    return {
        "object": "list",
        "data": [{"object": "embedding", "index": n, "embedding": [float(len(t))]} for n, t in enumerate(asked)],
        "model": order["model"],
        "usage": {"prompt_tokens": 5 * len(asked), "total_tokens": 5 * len(asked)},
    }


class Engine:
    """A server that embeds, and tells what it was asked; it refuses all of a request that holds the text "bad".

    `instead` answers a request for several inputs, where it gives something.
    """

    def __init__(self, instead: Callable[[], web.Response | None] = lambda: None) -> None:
        self._instead = instead
        self.orders: list[Any] = []
        self.headers: list[tuple[str, str]] = []

    async def answer(self, request: web.Request) -> web.Response:
        """Answer a request."""
        order = await request.json()
        self.orders.append(order["input"])
        self.headers.append((request.headers["X-Request-Id"], request.headers["Idempotency-Key"]))
        if "bad" in ([order["input"]] if isinstance(order["input"], str) else order["input"]):
            return web.json_response({"error": {"message": "one of them is bad"}}, status=400)
        instead = self._instead() if isinstance(order["input"], list) else None
        return instead or web.json_response(embedded(order))


@pytest.fixture
async def pack(clock: FakeClock) -> AsyncIterator[Pack]:
    """Make a packing backend in front of a server."""
    made: list[PackingBackend] = []

    def make(url: str) -> PackingBackend:
        transport = WireTransport(clock=clock, max_reply_bytes=1 << 20)
        made.append(PackingBackend(backend=HttpBackend(url=url, transport=transport, deadline=20.0), clock=clock))
        return made[-1]

    yield make
    for backend in made:
        await backend.close()


async def together(backend: PackingBackend, clock: FakeClock, calls: Sequence[Call]) -> list[Reply]:
    """Send calls in one turn of the loop, and let the wait for others pass."""
    sent = [asyncio.create_task(backend.send(each)) for each in calls]
    await clock.advance(WAIT)
    return await asyncio.gather(*sent)


def lengths(replies: Sequence[Reply]) -> list[object]:
    """Return the vectors of each reply, or its status where it has none."""
    return [
        [entry["embedding"][0] for entry in json.loads(reply.body)["data"]] if reply.status == 200 else reply.status
        for reply in replies
    ]


async def test_calls_of_one_turn_go_as_one(serve: Serve, pack: Pack, clock: FakeClock) -> None:
    """The server sees one request under a name of its own, and each line gets its vectors and its share of tokens."""
    engine = Engine()
    backend = pack(await serve(engine.answer))
    replies = await together(backend, clock, [call("a", 0), call(["bb", "ccc"], 1), call("dddd", 2)])
    assert engine.orders == [["a", "bb", "ccc", "dddd"]]
    assert lengths(replies) == [[1.0], [2.0, 3.0], [4.0]]
    assert [[entry["index"] for entry in json.loads(reply.body)["data"]] for reply in replies] == [[0], [0, 1], [0]]
    assert sum(json.loads(reply.body)["usage"]["total_tokens"] for reply in replies) == 20
    assert [reply.resent for reply in replies] == [0, 0, 0]
    await together(backend, clock, [call("a", 0), call(["bb", "ccc"], 1), call("dddd", 2)])
    await together(backend, clock, [call("a", 0), call(["bb", "ccc"], 1)])
    (name, key), again, other = engine.headers
    assert name == "req_0_and_2"
    assert key.startswith("pack_")
    assert again == (name, key)
    assert other[1] not in (key, "line_0")


async def test_lines_that_come_a_little_apart_meet(serve: Serve, pack: Pack, clock: FakeClock) -> None:
    """A line waits two milliseconds for others; one that comes later goes in the next pack."""
    engine = Engine()
    backend = pack(await serve(engine.answer))
    first = asyncio.create_task(backend.send(call("a")))
    await clock.advance(WAIT / 2)
    second = asyncio.create_task(backend.send(call("bb")))
    await settle()
    assert engine.orders == []
    await clock.advance(WAIT / 2)
    third = asyncio.create_task(backend.send(call("ccc")))
    assert lengths(await asyncio.gather(first, second)) == [[1.0], [2.0]]
    await clock.advance(WAIT)
    assert lengths([await third]) == [[3.0]]
    assert engine.orders == [["a", "bb"], "ccc"]


@pytest.mark.parametrize(
    "sent",
    [
        call("a", once=True),
        call("a", endpoint="/v1/completions"),
        call([1, 2]),
        call(["a"] * 33),
        call("a" * (1 << 20)),
    ],
    ids=["once", "another-endpoint", "tokens", "many-inputs", "large"],
)
async def test_what_cannot_go_with_others_goes_at_once(serve: Serve, pack: Pack, clock: FakeClock, sent: Call) -> None:
    """Nothing waits for company that it may not have, and its body is as it was."""
    got: list[bytes] = []

    async def handler(request: web.Request) -> web.Response:
        got.append(await request.read())
        return web.json_response({"data": []})

    backend = pack(await serve(handler))
    replies = await asyncio.gather(backend.send(sent), backend.send(sent))
    assert [reply.status for reply in replies] == [200, 200]
    assert got == [sent.body, sent.body]
    assert clock.sleeping == 0


async def test_a_line_without_company_goes_as_it_is(serve: Serve, pack: Pack, clock: FakeClock) -> None:
    """Its body and its names are its own, and it was sent once."""
    engine = Engine()
    (reply,) = await together(pack(await serve(engine.answer)), clock, [call("a", 7)])
    assert (engine.orders, engine.headers, reply.resent) == (["a"], [("req_7", "line_7")], 0)


async def test_only_bodies_that_are_the_same_but_for_the_input_go_together(
    serve: Serve, pack: Pack, clock: FakeClock
) -> None:
    """Another model, another option or another spelling of it makes another pack."""
    engine = Engine()
    calls = [call("a"), call("b", dimensions=8), call("c"), call("d", dimensions=8), call("e", dimensions=9)]
    replies = await together(pack(await serve(engine.answer)), clock, calls)
    assert lengths(replies) == [[1.0]] * 5
    assert sorted(map(str, engine.orders)) == ["['a', 'c']", "['b', 'd']", "e"]


async def test_a_full_pack_waits_for_nobody(serve: Serve, pack: Pack, clock: FakeClock) -> None:
    """Packs hold 32 inputs, or a mebibyte of them; the rest makes the next one."""
    engine = Engine()
    backend = pack(await serve(engine.answer))
    full = [asyncio.create_task(backend.send(call("a", n))) for n in range(64)]
    assert lengths(await asyncio.gather(*full)) == [[1.0]] * 64
    assert list(map(len, engine.orders)) == [32, 32]
    large = [call("x" * 400_000, n) for n in range(3)]
    assert lengths(await together(backend, clock, large)) == [[400_000.0]] * 3
    assert sorted(len(order) for order in engine.orders[2:]) == [2, 400_000]
    many = [call(["a"] * 20), call(["b"] * 20)]
    assert list(map(len, lengths(await together(backend, clock, many)))) == [20, 20]
    assert list(map(len, engine.orders[4:])) == [20, 20]


async def test_a_bad_line_fails_alone(serve: Serve, pack: Pack, clock: FakeClock) -> None:
    """A pack that is refused is taken apart: the neighbours succeed, and each line counts that it was sent before."""
    engine = Engine()
    replies = await together(pack(await serve(engine.answer)), clock, [call("a"), call("bad"), call("ccc")])
    assert lengths(replies) == [[1.0], 400, [3.0]]
    assert [reply.resent for reply in replies] == [1, 1, 1]
    assert engine.orders[0] == ["a", "bad", "ccc"]
    assert sorted(engine.orders[1:]) == ["a", "bad", "ccc"]


def with_less() -> web.Response:
    """A server that answers the first input only."""
    return web.json_response(embedded({"model": "m", "input": ["a"]}))


@pytest.mark.parametrize(
    "instead",
    [
        lambda: web.json_response({"error": {"message": "slow down"}}, status=429, headers={"Retry-After": "7"}),
        lambda: web.json_response({"error": {"message": "away"}}, status=503),
        lambda: web.json_response(embedded({"model": "m", "input": ["a", "b"]}), status=500),
        lambda: web.Response(body=b"no JSON at all"),
        with_less,
    ],
    ids=["busy", "away", "failed", "garbled", "less"],
)
async def test_after_any_other_reply_each_line_goes_alone(
    serve: Serve, pack: Pack, clock: FakeClock, instead: Callable[[], web.Response]
) -> None:
    """What it says of the pack is said to nobody, its Retry-After included: each line is judged by its own reply."""
    engine = Engine(instead)
    replies = await together(pack(await serve(engine.answer)), clock, [call("a"), call("bb")])
    assert lengths(replies) == [[1.0], [2.0]]
    assert [(reply.resent, reply.retry_after) for reply in replies] == [(1, None)] * 2
    assert len(engine.orders) == 3


async def test_a_lost_pack_was_sent_and_an_unreachable_one_was_not(
    serve_raw: ServeRaw, pack: Pack, clock: FakeClock
) -> None:
    """Where the connection broke over the pack, the server may have seen each line once more than it says itself."""

    async def script(raw: RawServer, connection: Connection) -> None:
        request = await connection.read_request()
        if raw.connections > 1 and request:
            order = json.loads(request.partition(b"\r\n\r\n")[2])
            await connection.write(answer(json.dumps(embedded(order)).encode()))
        else:
            connection.reset()

    raw = await serve_raw(script)
    replies = await together(pack(raw.url), clock, [call("a"), call("bb")])
    assert lengths(replies) == [[1.0], [2.0]]
    assert [reply.resent for reply in replies] == [1, 1]
    nowhere = await together(pack("http://127.0.0.1:1/v1"), clock, [call("a"), call("bb")])
    assert [(reply.fault, reply.resent) for reply in nowhere] == [(Fault.UNREACHABLE, 0)] * 2


async def test_a_line_that_leaves_before_the_pack_goes_is_not_sent(serve: Serve, pack: Pack, clock: FakeClock) -> None:
    """The others go on without it; and a pack that all have left is never sent, nor joined by who comes next."""
    engine = Engine()
    backend = pack(await serve(engine.answer))
    sent = [asyncio.create_task(backend.send(call("x" * n, n))) for n in (1, 2, 3)]
    await settle()
    sent[1].cancel()
    await clock.advance(WAIT)
    assert lengths(await asyncio.gather(sent[0], sent[2])) == [[1.0], [3.0]]
    assert engine.orders == [["x", "xxx"]]
    left = asyncio.create_task(backend.send(call("left")))
    await settle()
    left.cancel()
    with pytest.raises(asyncio.CancelledError):
        await left
    assert lengths(await together(backend, clock, [call("a"), call("bb")])) == [[1.0], [2.0]]
    assert engine.orders[1:] == [["a", "bb"]]


async def test_a_pack_goes_on_as_long_as_a_line_of_it_is_waited_for(
    serve_raw: ServeRaw, pack: Pack, clock: FakeClock
) -> None:
    """One that leaves takes nothing from the others; when the last has left, the connection is closed."""
    arrived, go_on = asyncio.Event(), asyncio.Event()

    async def script(raw: RawServer, connection: Connection) -> None:
        order = json.loads((await connection.read_request()).partition(b"\r\n\r\n")[2])
        arrived.set()
        waits = [asyncio.ensure_future(each) for each in (go_on.wait(), connection.closed_by_client())]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        if waits[1].done():
            raw.hung_up.set()
        waits[1].cancel()
        await connection.write(answer(json.dumps(embedded(order)).encode()))

    raw = await serve_raw(script)
    backend = pack(raw.url)

    async def out() -> list["asyncio.Task[Reply]"]:
        sent = [asyncio.create_task(backend.send(call("x" * n, n))) for n in (1, 2)]
        await clock.advance(WAIT)
        await arrived.wait()
        arrived.clear()
        sent[0].cancel()
        await settle()
        return sent

    left, stays = await out()
    go_on.set()
    assert lengths([await stays]) == [[2.0]]
    assert left.cancelled()
    go_on.clear()
    _, last = await out()
    assert not raw.hung_up.is_set()
    last.cancel()
    await raw.hung_up.wait()
    assert last.cancelled()


async def test_packs_that_come_to_nothing_rest(serve: Serve, pack: Pack, clock: FakeClock) -> None:
    """After three in a row lines go alone for a minute, without a wait, and the log says why; one good pack counts."""
    answers = [with_less, with_less, lambda: None, with_less, with_less, with_less]
    engine = Engine(lambda: answers.pop(0)() if answers else None)
    backend = pack(await serve(engine.answer))
    two = [call("a", 0), call("bb", 1)]
    with capture_logs() as logged:
        for _ in range(6):
            assert not logged
            assert lengths(await together(backend, clock, two)) == [[1.0], [2.0]]
    assert [(entry["event"], entry["reason"]) for entry in logged] == [
        ("embeddings go alone for a while: packs come to nothing", "status 200")
    ]
    engine.orders.clear()
    assert lengths(await asyncio.gather(*map(backend.send, two))) == [[1.0], [2.0]]
    assert sorted(engine.orders) == ["a", "bb"]
    await clock.advance(60)
    assert lengths(await together(backend, clock, two)) == [[1.0], [2.0]]
    assert engine.orders[2:] == [["a", "bb"]]


class Broken(EchoBackend):
    """A backend with a fault in its own code."""

    async def send(self, call: Call) -> Reply:
        """Fail."""
        raise LookupError(call.request_id)


async def test_a_fault_reaches_every_line(clock: FakeClock) -> None:
    """What is not the server's doing is not swallowed."""
    backend = PackingBackend(backend=Broken(clock=clock), clock=clock)
    sent = [asyncio.create_task(backend.send(call("a", n))) for n in range(2)]
    await clock.advance(WAIT)
    faults = await asyncio.gather(*sent, return_exceptions=True)
    assert [str(fault) for fault in faults] == ["req_0_and_1"] * 2


async def test_it_is_the_backend_in_all_else(serve: Serve, pack: Pack) -> None:
    """Its name, its models and its gauges are those of the backend; closed, it leaves nothing under way."""

    async def handler(request: web.Request) -> web.Response:
        if request.path.endswith("/metrics"):
            return web.Response(text="vllm:num_requests_running 3\nvllm:num_requests_waiting 1\n")
        return web.json_response({"data": [{"id": "m"}]})

    url = await serve(handler)
    backend = pack(url)
    gauges = await backend.gauges()
    assert (backend.name, await backend.models()) == (url, ("m",))
    assert gauges is not None
    sent = asyncio.create_task(backend.send(call("a")))
    await settle()
    await backend.close()
    await settle()
    assert sent.cancelled()


@settings(deadline=None)
@given(asked=st.lists(st.text(max_size=8) | st.lists(st.text(max_size=8), min_size=1, max_size=3), max_size=40))
def test_packed_is_as_alone(asked: list[str | list[str]]) -> None:
    """Whatever is asked for together, each line gets the very bytes that it would get alone, but for its usage."""

    async def both() -> tuple[list[Reply], list[Reply]]:
        clock = FakeClock()
        echo = EchoBackend(clock=clock)
        calls = [call(each, n) for n, each in enumerate(asked)]
        packed = await together(PackingBackend(backend=echo, clock=clock), clock, calls)
        return packed, [await echo.send(each) for each in calls]

    packed, alone = asyncio.run(both())
    assert list(map(without_usage, packed)) == list(map(without_usage, alone))
    assert sum(map(tokens, packed)) == sum(map(tokens, alone))


def without_usage(reply: Reply) -> tuple[object, ...]:
    """Return a reply, its body before and after its usage."""
    head, _, rest = reply.body.partition(b'"usage"')
    return reply.status, head, rest.partition(b"}")[2], reply.fault, reply.resent


def tokens(reply: Reply) -> int:
    """Return the tokens that a reply counts."""
    return int(json.loads(reply.body)["usage"]["total_tokens"])
