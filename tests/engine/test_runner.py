"""The Runner: what is sent, what is recorded, what is never sent again."""

import asyncio
import hashlib
import json

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from batchmill.backends.http import HttpBackend
from batchmill.backends.wire import WireTransport
from batchmill.engine.group import GroupBounds
from batchmill.spec.states import Status
from engine.faulty import HangingDatabase
from engine.mill import LEASE, Mill, line, lines
from fakeclock import settle


async def test_results_are_in_input_order(mill: Mill) -> None:
    """Every line has one result, in the order of the input, and the counts are the lines of the files."""
    hand = mill.hand(mill.echo())
    batch_id = await mill.batch(lines(600))
    assert await mill.finish(hand, batch_id) is Status.COMPLETED
    assert [r["custom_id"] for r in await mill.results(batch_id)] == [f"r-{n}" for n in range(600)]
    batch = (await mill.look(batch_id)).object
    assert (batch.counts.completed, batch.counts.failed, batch.counts.total) == (600, 0, 600)
    assert batch.error_file_id is None
    assert batch.usage is not None
    assert batch.usage.input_tokens == 1200


async def test_a_body_is_sent_as_it_was_written(mill: Mill) -> None:
    """A body goes out byte for byte: spacing, repeated keys, big numbers and raw Unicode included."""
    bodies = [
        (
            b'{ "model" : "echo" ,"messages":[{"role":"user","content":"\xe4\xbd\xa0\\u597d"}],'
            b'  "seed":12345678901234567890 }'
        ),
        b'{"model":"echo","messages":[{"role":"user","content":"x"}],"a":1,"a":2,"f":0.10000000000000000555}',
    ]
    content = b"".join(
        b'{"body":%b,"custom_id":"b-%d","url":"/v1/chat/completions","method":"POST"}\r\n' % (body, n)
        for n, body in enumerate(bodies)
    )
    echo = mill.echo()
    batch_id = await mill.batch(b"\xef\xbb\xbf\n" + content)
    assert await mill.finish(mill.hand(echo), batch_id) is Status.COMPLETED
    assert [call.body for call in echo.calls] == bodies


async def test_the_window_is_never_passed(mill: Mill) -> None:
    """No more requests are open at a backend than its window."""
    echo = mill.echo(latency=1.0)
    batch_id = await mill.batch(lines(40))
    assert await mill.finish(mill.hand(echo, window=5), batch_id) is Status.COMPLETED
    assert echo.most_open == 5


async def test_batches_interleave(mill: Mill) -> None:
    """A small batch does not wait behind a large one: they are sent line by line in turns."""
    echo = mill.echo(latency=1.0)
    hand = mill.hand(echo, window=4)
    large = await mill.batch(lines(2000))
    await hand.accept()
    await mill.turn(hand, seconds=2)
    small = await mill.batch(lines(8), organisation="theirs")
    assert await mill.finish(hand, small, seconds=10) is Status.COMPLETED
    assert await mill.status(large) is Status.IN_PROGRESS


async def test_a_recorded_line_is_never_sent_again(mill: Mill) -> None:
    """After a worker dies, the next owner of a Slice sends only its holes."""
    first, second = mill.echo(latency=1.0), mill.echo()
    dead = mill.hand(first, window=10)
    batch_id = await mill.batch(lines(100))
    await dead.accept()
    await mill.turn(dead, seconds=3.5)
    done = (await mill.look(batch_id)).object.counts.completed
    assert 10 <= done < 100
    await mill.clock.advance(LEASE + 1)  # the lease lapses: nobody renews it
    heir = mill.hand(second)
    assert await mill.finish(heir, batch_id) is Status.COMPLETED
    again = {c.idempotency_key for c in first.calls} & {c.idempotency_key for c in second.calls}
    assert len(second.calls) == 100 - done
    assert len(again) == len(first.calls) - done
    assert len(await mill.results(batch_id)) == 100


async def test_a_stale_owner_cannot_write(mill: Mill) -> None:
    """A worker whose Slice was taken over records nothing, and the file has every line once."""
    stale = mill.hand(mill.echo(latency=20.0), window=10)
    batch_id = await mill.batch(lines(30))
    await stale.accept()
    await stale.runner.step()
    await settle()
    await mill.clock.advance(LEASE + 1)
    heir = mill.hand(mill.echo())
    await heir.scout.step()
    await mill.turn(heir, seconds=2)
    for _ in range(100):  # its answers come now; it has not renewed its leases for long
        await stale.runner.step()
        await mill.clock.advance(0.1)
    assert await mill.finish(heir, batch_id) is Status.COMPLETED
    assert [r["custom_id"] for r in await mill.results(batch_id)] == [f"r-{n}" for n in range(30)]


async def test_nothing_is_sent_after_the_window(mill: Mill) -> None:
    """No send starts at or after `expires_at`; what was done stays, the rest is `batch_expired`."""
    echo = mill.echo(latency=1.0)
    hand = mill.hand(echo, window=2)
    batch_id = await mill.batch(lines(50), window=5)
    await hand.accept()
    await mill.turn(hand, seconds=6)
    sent = len(echo.calls)
    assert 8 <= sent <= 12
    await mill.turn(hand, seconds=2)
    assert len(echo.calls) == sent
    await mill.sweeper.step()
    assert await mill.finish(hand, batch_id) is Status.EXPIRED
    batch = (await mill.look(batch_id)).object
    assert (batch.counts.completed, batch.counts.failed) == (sent, 50 - sent)
    assert {r["error"]["code"] for r in await mill.results(batch_id, "error")} == {"batch_expired"}


async def test_a_cancel_stops_the_sending(mill: Mill) -> None:
    """After a cancel no line is sent for longer than a second, open calls end, and what is done is kept."""
    echo = mill.echo(latency=1.0)
    hand = mill.hand(echo, window=3)
    batch_id = await mill.batch(lines(60))
    await hand.accept()
    await mill.turn(hand, seconds=4.2)
    await mill.cancel(batch_id)
    await mill.turn(hand, seconds=1)
    sent = len(echo.calls)
    assert await mill.finish(hand, batch_id) is Status.CANCELLED
    assert len(echo.calls) == sent
    batch = (await mill.look(batch_id)).object
    assert (batch.counts.completed, batch.counts.failed) == (sent, 60 - sent)
    assert {r["error"]["code"] for r in await mill.results(batch_id, "error")} == {"batch_cancelled"}


async def test_a_drain_loses_and_repeats_nothing(mill: Mill) -> None:
    """A drained worker leaves only lines that were never sent, and its Slices are free at once."""
    first, second = mill.echo(latency=1.0), mill.echo()
    hand = mill.hand(first, window=6)
    batch_id = await mill.batch(lines(50))
    await hand.accept()
    await mill.turn(hand, seconds=2.5)
    hand.runner.halt()
    draining = asyncio.create_task(hand.runner.drain(seconds=30))
    await mill.clock.advance(2)
    await draining
    assert await mill.finish(mill.hand(second), batch_id) is Status.COMPLETED
    assert len(first.calls) + len(second.calls) == 50


async def test_a_full_group_does_not_stop_the_sending_for_ever(mill: Mill) -> None:
    """Sending pauses while too much is not durable, and goes on when it is."""
    bounds = GroupBounds(results=10, most_results=20)
    batch_id = await mill.batch(lines(500))
    assert await mill.finish(mill.hand(mill.echo(), bounds=bounds), batch_id) is Status.COMPLETED


async def test_a_model_without_backend_holds_nobody_up(mill: Mill) -> None:
    """Lines for a model that nobody serves now wait, and the batches of other models go on."""
    await mill.knows("away")
    hand = mill.hand(mill.echo())
    waiting = await mill.batch(lines(300, model="away"))
    going = await mill.batch(lines(300))
    assert await mill.finish(hand, going) is Status.COMPLETED
    assert await mill.status(waiting) is Status.IN_PROGRESS


@pytest.mark.parametrize(
    ("answers", "sends", "kind", "code"),
    [
        ([(400, '{"error":{"message":"no"}}')], 1, "error", 400),
        ([(500, "{}"), (200, '{"choices":[]}')], 2, "output", 200),
        ([(500, '{"error":{"message":"boom"}}')] * 5, 5, "error", 500),
        ([(429, "{}")] * 7 + [(200, '{"choices":[]}')], 8, "output", 200),
        ([(503, "{}")] * 7 + [(200, '{"choices":[]}')], 8, "output", 200),
        ([(401, "{}"), (200, '{"choices":[]}')], 2, "output", 200),
        ([(502, "{}")] * 2 + [(200, '{"choices":[]}')], 3, "output", 200),
        ([(200, "<html>")] * 9, 6, "error", None),
    ],
    ids=["4xx", "one 500", "five 500", "429", "503", "401", "502", "garbled"],
)
async def test_what_a_reply_means(
    mill: Mill, answers: list[tuple[int, str]], sends: int, kind: str, code: int | None
) -> None:
    """A 4xx is the line's; a 500 costs one of five attempts; 429, 503 and 401 cost none.

    Garbage from a backend that says nothing else is tried thrice, then thrice alone, and ends as an error.
    """
    seen: list[str] = []

    async def chat(request: web.Request) -> web.Response:
        seen.append(hashlib.sha256(await request.read()).hexdigest())
        status, body = answers[min(len(seen), len(answers)) - 1]
        return web.Response(status=status, text=body, content_type="application/json")

    async def models(_request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "echo"}]})

    app = web.Application()
    app.add_routes([web.post("/v1/chat/completions", chat), web.get("/v1/models", models)])
    async with TestServer(app) as server:
        transport = WireTransport(clock=mill.clock, max_reply_bytes=1 << 20)
        backend = HttpBackend(url=str(server.make_url("/v1")), transport=transport, deadline=10)
        hand = mill.hand(backend, window=1)
        batch_id = await mill.batch(line("only"))
        await hand.accept()
        for _ in range(2000):
            await hand.scout.step()
            await hand.runner.step()
            await settle()
            if await mill.status(batch_id) is Status.FINALIZING:
                break
            if not hand.lanes[0].pace.in_flight:
                await mill.renew(hand)
                await mill.clock.advance(0.5)
        await hand.finalizer.step()
        await backend.close()
    assert len(seen) == sends
    (result,) = await mill.results(batch_id, kind)
    assert (result["response"] and result["response"]["status_code"]) == code
    assert result["custom_id"] == "only"
    if code is None:
        assert result["error"]["code"] == "invalid_backend_response"
        assert result["error"]["message"].endswith("It began: <html>")


async def test_a_custom_id_comes_back_as_it_was_written(mill: Mill) -> None:
    """The custom_id of a result is the token of the input, escapes and all."""
    batch_id = await mill.batch(line("x").replace(b'"x"', b'"\\u00e9 \\/ \xc3\xa9"'))
    await mill.finish(mill.hand(mill.echo()), batch_id)
    assert b'"custom_id":"\\u00e9 \\/ \xc3\xa9"' in await mill.raw_results(batch_id)
    assert json.loads(await mill.raw_results(batch_id))["custom_id"] == "é / é"


async def test_sends_stop_after_a_cancel_while_a_commit_hangs(mill: Mill) -> None:
    """A commit that hangs keeps nobody from seeing a cancel: within a second nothing more is sent."""
    mill.database = database = HangingDatabase(mill.database)
    echo = mill.echo(latency=0.5)
    hand = mill.hand(echo, window=4)
    batch_id = await mill.batch(lines(250))
    await hand.accept()
    running = asyncio.create_task(hand.runner.run())
    await mill.pass_time(2)
    database.goes.clear()
    await mill.pass_time(1)
    assert database.hanging == 1
    before = len(echo.calls)
    await mill.pass_time(1)
    assert len(echo.calls) > before  # calls that end start others
    await mill.cancel(batch_id)
    await mill.pass_time(1)
    sent = len(echo.calls)
    await mill.pass_time(3)
    assert len(echo.calls) == sent < 250
    database.goes.set()
    hand.runner.halt()
    await mill.pass_time(1)
    await running


@pytest.mark.parametrize("what", ["plan", "input"])
async def test_a_batch_whose_bytes_are_gone_stops_no_other(mill: Mill, what: str) -> None:
    """Where a batch's Plan or input is missing it waits and says so; the others are completed."""
    hand = mill.hand(mill.echo())
    bad, good = [await mill.batch(lines(5)) for _ in range(2)]
    await hand.accept()
    batch = await mill.look(bad)
    key = batch.plan_key if what == "plan" else batch.input_key
    assert key is not None
    mill.blobs.delete(key)
    assert await mill.finish(hand, good) is Status.COMPLETED
    waiting = await mill.look(bad)
    assert waiting.object.status is Status.IN_PROGRESS
    assert waiting.waiting is not None
    assert waiting.waiting.startswith("stored bytes are missing")


async def test_a_call_cancelled_before_it_began_is_not_in_flight(mill: Mill) -> None:
    """A call that is given up in the very turn in which it was made frees its slot, and nothing was sent."""
    echo = mill.echo(latency=1.0)
    hand = mill.hand(echo, window=4)
    await mill.batch(lines(20))
    await hand.accept()
    await hand.runner.step()
    assert hand.lanes[0].pace.in_flight == 4
    await hand.runner.abort()
    assert (hand.lanes[0].pace.in_flight, echo.calls) == (0, [])
