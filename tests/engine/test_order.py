"""Lines whose prompts begin alike: sent together, and given back in the order of the file."""

import asyncio
import random
from collections.abc import Sequence
from threading import Event
from typing import TypeVar

import pytest

from batchmill.backends.backend import Call, Reply
from batchmill.backends.echo import EchoBackend
from batchmill.blobs.blobs import Blobs, Span
from batchmill.spec.states import Status
from batchmill.store.database import Statements
from engine.faulty import FaultyBlobs, FaultyDatabase
from engine.mill import Mill, Watched, line, lines

T = TypeVar("T")

DOCUMENTS, QUESTIONS = 25, 8
TEXT = 24_000  # bytes of a document: all of them do not fit half a small engine's cache


def shuffled() -> tuple[bytes, list[str]]:
    """Return a file of questions about documents, in no order, and its custom_ids."""
    every = [f"{document}-{question}" for document in range(DOCUMENTS) for question in range(QUESTIONS)]
    random.Random(3).shuffle(every)  # noqa: S311 - an order, the same each time
    texts = [chr(65 + document) * TEXT for document in range(DOCUMENTS)]
    return b"".join(line(name, texts[int(name.split("-")[0])] + name) for name in every), every


def documents(backend: Watched) -> list[int]:
    """Return the documents of a backend's calls, those in a row once."""
    found: list[int] = []
    for call in backend.calls:
        name = ord(call.body.decode().split('"content": "')[1][0]) - 65
        if not found or found[-1] != name:
            found.append(name)
    return found


async def test_each_document_is_read_once(mill: Mill) -> None:
    """An engine gets all lines of a document in a row, and the output file has them where the input had."""
    content, every = shuffled()
    backend = mill.echo()
    batch = await mill.batch(content)
    assert await mill.finish(mill.hand(backend), batch) is Status.COMPLETED
    assert len(backend.calls) == len(every)
    assert sorted(documents(backend)) == list(range(DOCUMENTS))
    assert [result["custom_id"] for result in await mill.results(batch)] == every


async def test_a_document_is_one_backends(mill: Mill) -> None:
    """Two engines share the documents out: a few are read by both, when one has run dry."""
    content, every = shuffled()
    backends = [mill.echo(latency=latency, name=f"{latency}:") for latency in (0.3, 0.1)]
    batch = await mill.batch(content)
    assert await mill.finish(mill.hand(*backends, window=4), batch) is Status.COMPLETED
    assert len(backends[0].calls) + len(backends[1].calls) == len(every)
    assert min(len(backend.calls) for backend in backends) > 0
    assert sum(len(set(documents(backend))) for backend in backends) <= DOCUMENTS + 2
    assert [result["custom_id"] for result in await mill.results(batch)] == every


@pytest.mark.parametrize("once", [False, True], ids=["retry", "once"])
async def test_a_cancelled_batch_keeps_the_order_of_its_file(mill: Mill, *, once: bool) -> None:
    """What was answered and what was not stand in the order of the input, each line in one of the two files."""
    content, every = shuffled()
    hand = mill.hand(mill.echo(latency=1.0), window=8, once=once)
    batch = await mill.batch(content)
    await hand.accept()
    await mill.turn(hand, seconds=6)
    await mill.cancel(batch)
    assert await mill.finish(hand, batch) is Status.CANCELLED
    done = [result["custom_id"] for result in await mill.results(batch)]
    rest = [result["custom_id"] for result in await mill.results(batch, "error")]
    assert 0 < len(done) < len(every)
    assert done == [name for name in every if name in done]
    assert rest == [name for name in every if name not in done]


async def test_lines_that_come_back_are_sent_again(mill: Mill) -> None:
    """A worker that dies over a re-ordered Plan leaves holes, and the next one fills just these."""
    content, every = shuffled()
    batch = await mill.batch(content)
    first = mill.hand(mill.echo(latency=1.0))
    await first.accept()
    await mill.turn(first, seconds=4)
    await mill.die(first)
    backend = mill.echo()
    assert await mill.finish(mill.hand(backend), batch) is Status.COMPLETED
    assert len(backend.calls) < len(every)
    assert [result["custom_id"] for result in await mill.results(batch)] == every


class Slow(FaultyBlobs):
    """Blobs of which a batch's input is read when a test says so."""

    def __init__(self, blobs: Blobs) -> None:
        super().__init__(blobs)
        self.begun, self.go_on = Event(), Event()

    def read_spans(self, key: str, spans: Sequence[Span]) -> list[bytes]:
        """See `Blobs`."""
        if key.startswith("upload"):
            self.begun.set()
            assert self.go_on.wait(30)
        return super().read_spans(key, spans)


class Looked(FaultyDatabase):
    """Rows that count how often they were read."""

    looks = 0

    async def read(self, statements: Statements[T]) -> T:
        """See `Database`."""
        found = await super().read(statements)
        self.looks += 1
        return found


async def test_a_cancel_while_lines_are_read_is_a_cancel(mill: Mill) -> None:
    """A batch that closes while its bytes are on their way ends as any other, and its worker goes on."""
    batch = await mill.batch(lines(20))
    blobs = mill.blobs = Slow(mill.blobs)
    database = mill.database = Looked(mill.database)
    hand = mill.hand(mill.echo())
    await hand.accept()
    running = asyncio.create_task(hand.runner.run())
    assert await asyncio.to_thread(blobs.begun.wait, 30)
    await mill.cancel(batch)
    await mill.renew(hand)
    seen = database.looks + 2  # the first of them may have begun before the cancel
    while database.looks < seen:
        await mill.pass_time(0.1)
    blobs.go_on.set()
    await mill.pass_time(1.0)
    hand.runner.halt()
    await running
    await hand.runner.drain(seconds=1.0)
    assert await mill.finish(mill.hand(mill.echo()), batch) is Status.CANCELLED
    assert len(await mill.results(batch, "error")) == 20


@pytest.mark.parametrize("once", [False, True], ids=["retry", "once"])
async def test_a_slow_backend_has_its_window_full(mill: Mill, *, once: bool) -> None:
    """In the middle of a batch each lane gets what it takes, however much faster the other is."""
    quick, slow = mill.echo(latency=0.2, name="quick:"), mill.echo(latency=2.0, name="slow:")
    hand = mill.hand(quick, slow, once=once)
    await mill.batch(lines(3000))
    await hand.accept()
    await mill.turn(hand, seconds=20)
    assert slow.most_open == 8
    assert len(slow.calls) >= 72


class Busy(Watched):
    """Answers a 429 to all."""

    async def send(self, call: Call) -> Reply:
        """See `Backend`."""
        await super().send(call)
        return Reply(status=429, body=b"{}")


async def test_a_backend_that_refuses_takes_nobodys_share(mill: Mill) -> None:
    """One that says 429 to all has answered nothing: the sound one has its window full to the end."""
    busy, sound = Busy(EchoBackend(clock=mill.clock, latency=0.2), name="busy:"), mill.echo(latency=1.0, name="sound:")
    hand = mill.hand(busy, sound)
    await mill.batch(lines(250))
    await hand.accept()
    await mill.turn(hand, seconds=50)
    assert len(sound.calls) >= 240
