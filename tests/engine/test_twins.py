"""Lines of a batch with the same body, with `coalesce`: run once, and each custom_id has its line."""

import json

import pytest
from sqlalchemy import select

from batchmill.backends.backend import Call, Reply
from batchmill.backends.echo import EchoBackend
from batchmill.schedule.retry import Fault
from batchmill.spec.states import Status
from batchmill.store.tables import slice_
from batchmill.store.worker import void_leases
from engine.faulty import Falling
from engine.mill import Mill, Watched, line


def repeated(count: int, texts: int) -> bytes:
    """Return so many lines, with so many different texts in turns."""
    return b"".join(line(f"r-{number}", f"text {number % texts}") for number in range(count))


async def test_lines_with_one_body_run_once(mill: Mill) -> None:
    """A thousand lines with seven bodies are seven calls; each custom_id has the answer to its body, in its place."""
    backend = mill.echo(latency=0.2)
    hand = mill.hand(backend, coalesce=True)
    batch = await mill.batch(repeated(1000, 7))
    assert await mill.finish(hand, batch) is Status.COMPLETED
    assert len(backend.calls) == 7
    results = await mill.results(batch)
    assert [result["custom_id"] for result in results] == [f"r-{number}" for number in range(1000)]
    assert len({result["id"] for result in results}) == 1000
    for number, result in enumerate(results):
        assert result["response"]["body"]["choices"][0]["message"]["content"] == f"echo: text {number % 7}"


async def test_tokens_are_counted_once(mill: Mill) -> None:
    """A batch's usage is that of the calls that were made, not of the lines that got their answers."""
    alone, together = await mill.batch(line("one", "hi")), await mill.batch(repeated(50, 1).replace(b"text 0", b"hi"))
    hand = mill.hand(mill.echo(), coalesce=True)
    assert await mill.finish(hand, alone) is Status.COMPLETED
    assert await mill.finish(hand, together) is Status.COMPLETED
    assert (await mill.look(together)).object.usage == (await mill.look(alone)).object.usage


async def test_it_is_off_by_default(mill: Mill) -> None:
    """Without the setting every line is sent: two samples of one prompt may be what a user wants."""
    backend = mill.echo()
    batch = await mill.batch(repeated(30, 1))
    assert await mill.finish(mill.hand(backend), batch) is Status.COMPLETED
    assert len(backend.calls) == 30


async def test_one_byte_makes_another_line(mill: Mill) -> None:
    """A space in a body is enough for it to be run by itself."""
    backend = mill.echo()
    spaced = line("spaced", "hi").replace(b'"model": "echo"', b'"model":  "echo"')
    batch = await mill.batch(line("one", "hi") + spaced + line("two", "hi"))
    assert await mill.finish(mill.hand(backend, coalesce=True), batch) is Status.COMPLETED
    assert len(backend.calls) == 2


async def test_another_batch_has_answers_of_its_own(mill: Mill) -> None:
    """The same file twice is run twice."""
    backend = mill.echo()
    hand = mill.hand(backend, coalesce=True)
    for batch in [await mill.batch(repeated(10, 2)), await mill.batch(repeated(10, 2))]:
        assert await mill.finish(hand, batch) is Status.COMPLETED
    assert len(backend.calls) == 4


async def test_a_refusal_is_every_ones(mill: Mill) -> None:
    """What the backend refuses once is refused for all that say the same, each with its own custom_id."""
    backend = mill.echo()
    batch = await mill.batch(b"".join(line(f"r-{number}", 7) for number in range(20)))
    assert await mill.finish(mill.hand(backend, coalesce=True), batch) is Status.COMPLETED
    assert len(backend.calls) == 1
    errors = await mill.results(batch, "error")
    assert [error["custom_id"] for error in errors] == [f"r-{number}" for number in range(20)]
    assert {error["response"]["status_code"] for error in errors} == {400}


@pytest.mark.parametrize("once", [False, True], ids=["retry", "once"])
async def test_a_line_without_an_answer_is_nobody_elses(mill: Mill, *, once: bool) -> None:
    """What no HTTP answer came for is not shared: the others are sent themselves, and none is lost."""
    backend = Falling(mill, {0: [Fault.RESET], 1: [Fault.RESET]})
    hand = mill.hand(backend, coalesce=True, once=once)
    texts = [0, 1, 2, 0, 1, 2, 0, 1]
    batch = await mill.batch(b"".join(line(f"r-{n}", f"hi {text}") for n, text in enumerate(texts)))
    assert await mill.finish(hand, batch, seconds=300) is Status.COMPLETED
    done = [result["custom_id"] for result in await mill.results(batch)]
    given_up = [result["custom_id"] for result in await mill.results(batch, "error")]
    assert given_up == (["r-0", "r-1"] if once else [])
    assert sorted(backend.sends) == [0, 0, 1, 1, 2]
    assert sorted(done + given_up) == [f"r-{n}" for n in range(8)]


async def test_a_cancelled_batch_lets_go_of_who_waits(mill: Mill) -> None:
    """Lines that wait for their twin's answer when their batch is cancelled are cancelled lines."""
    hand = mill.hand(mill.echo(latency=1e6), coalesce=True)
    batch = await mill.batch(repeated(20, 1))
    await hand.accept()
    await mill.turn(hand, seconds=2)
    await mill.cancel(batch)
    assert await mill.finish(hand, batch, seconds=120) is Status.CANCELLED
    errors = await mill.results(batch, "error")
    assert [error["custom_id"] for error in errors] == [f"r-{number}" for number in range(20)]


async def test_an_heir_runs_what_was_not_answered(mill: Mill) -> None:
    """A worker that dies while lines wait for their twin leaves them to the next, who runs one of them again."""
    batch = await mill.batch(repeated(40, 2))
    first = mill.hand(mill.echo(latency=60), coalesce=True)
    await first.accept()
    await mill.die(first)
    backend = mill.echo()
    assert await mill.finish(mill.hand(backend, coalesce=True), batch) is Status.COMPLETED
    assert len(backend.calls) == 2
    assert len(await mill.results(batch)) == 40


async def test_answers_are_kept_within_bounds(mill: Mill) -> None:
    """A body that comes back after its answer was forgotten is run again, and rightly."""
    text = "x" * 300_000
    content = b"".join(line(f"r-{number}", f"{number % 150} {text}") for number in range(160))
    backend = mill.echo()
    batch = await mill.batch(content)
    assert await mill.finish(mill.hand(backend, coalesce=True), batch) is Status.COMPLETED
    assert 150 <= len(backend.calls) <= 160
    for number, raw in enumerate((await mill.raw_results(batch)).splitlines()):
        assert json.loads(raw)["response"]["body"]["choices"][0]["message"]["content"].startswith(
            f"echo: {number % 150} "
        )


async def test_who_waits_is_bounded(mill: Mill) -> None:
    """While one call is out, its twins are not claimed to the end of the file: a thousand wait, others are sent."""
    backend = mill.echo(latency=1e6)
    hand = mill.hand(backend, coalesce=True)
    await mill.batch(repeated(256 * 60, 1))
    await hand.accept()
    await mill.turn(hand, seconds=20)
    assert backend.open == 8
    held = select(slice_.c.ordinal).where(slice_.c.owner.is_not(None))
    assert len(await mill.database.read(lambda tx: tx.connection.execute(held).all())) < 20


async def test_what_was_never_sent_is_not_in_doubt(mill: Mill) -> None:
    """With `once`, of lines that waited for their twin when their worker died only that twin is in doubt."""
    batch = await mill.batch(repeated(200, 1))
    dead = mill.hand(mill.echo(latency=1e6), once=True, coalesce=True)
    await dead.accept()
    await mill.turn(dead, seconds=8)
    await mill.database.write(lambda tx: void_leases(tx, worker_id="heir"))
    assert await mill.finish(mill.hand(mill.echo(), once=True, coalesce=True), batch) is Status.COMPLETED
    assert [error["error"]["code"] for error in await mill.results(batch, "error")] == ["outcome_unknown"]


class Flaky(Watched):
    """Answers a gateway's error to one body, but for its last three sends."""

    left = 7

    async def send(self, call: Call) -> Reply:
        """See `Backend`."""
        reply = await super().send(call)
        if b"flaky" not in call.body or self.left == 0:
            return reply
        self.left -= 1
        return Reply(status=502, body=b"{}")


async def test_a_gateways_error_is_one_lines_own(mill: Mill) -> None:
    """A line that ends by a 502 after all its attempts takes no other with it: the next one is sent."""
    backend = Flaky(EchoBackend(clock=mill.clock, latency=0.3))
    batch = await mill.batch(b"".join(line(f"r-{n}", "flaky" if n % 2 else f"text {n}") for n in range(60)))
    hand = mill.hand(backend, coalesce=True, window=2)
    await hand.accept()
    while not await hand.finalizer.step():
        await hand.scout.step()
        await mill.turn(hand, seconds=0.5)
        assert mill.clock.boot() < 2000.0
    assert len(await mill.results(batch, "error")) <= 1
    assert len(await mill.results(batch)) >= 59
