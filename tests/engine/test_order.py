"""Lines whose prompts begin alike: sent together, and given back in the order of the file."""

import random

import pytest

from batchmill.spec.states import Status
from engine.mill import Mill, Watched, line

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
