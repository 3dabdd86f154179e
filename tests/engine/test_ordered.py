"""Lines of a bucket that go in another order than the file's: copied once, in that order, and read by few requests."""

import errno
import os
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import BinaryIO

import pytest

from batchmill.blobs.bucket import BucketBlobs
from batchmill.ledger.audit import Audit
from batchmill.spec.states import Status
from batchmill.store.audit import list_blobs
from batchmill.store.blob import drop_refs
from batchmill.store.database import Transaction
from batchmill.store.file import delete_file
from bucket import Bucket, bucket, toxic
from engine.mill import LEASE, Mill, line, lines
from engine.test_order import documents
from faults.toxic import Fault, Toxic

__all__ = ["bucket", "toxic"]

DOCUMENTS, QUESTIONS = 12, 6
TEXT = 70_000  # bytes of a document: a bucket is asked for each line by itself where they lie apart
COUNT = DOCUMENTS * QUESTIONS


def shuffled(*, documents: int = DOCUMENTS, questions: int = QUESTIONS, text: int = TEXT) -> tuple[bytes, list[str]]:
    """Return a file of questions about documents, in no order, and its custom_ids."""
    every = [f"{document}-{question}" for document in range(documents) for question in range(questions)]
    random.Random(3).shuffle(every)  # noqa: S311 - an order, the same each time
    texts = [chr(65 + document) * text for document in range(documents)]
    return b"".join(line(name, texts[int(name.split("-")[0])] + name) for name in every), every


class Cramped(BucketBlobs):
    """A bucket beside a full disk."""

    def scratch(self) -> BinaryIO:
        """See `Blobs`."""
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
async def mill(toxic: Toxic, bucket: Bucket, tmp_path: Path) -> AsyncIterator[Mill]:
    """A mill over a bucket that is asked for a moment only."""
    assert toxic.port
    made = await Mill.build(tmp_path, blobs=bucket.blobs(tmp_path, patience=0.05))
    yield made
    await made.database.close()


def reads(toxic: Toxic, key: str) -> int:
    """Return by how many requests bytes with this in their key were read."""
    return sum(method == "GET" and key in path for method, path in toxic.requests)


async def keys(mill: Mill, state: str = "ready") -> list[str]:
    """Return the keys whose rows are in this state, each by its end."""
    rows = await mill.database.read(lambda tx: list_blobs(tx, after="", limit=1000))
    return sorted(row.key.rpartition("-")[2] for row in rows if row.state == state)


async def check(mill: Mill) -> None:
    """Assert that the store is sound."""
    audit = Audit(database=mill.database, blobs=mill.blobs, clock=mill.clock)
    assert [finding async for finding in audit.findings() if finding.is_damage] == []


async def sweep(mill: Mill) -> None:
    """Sweep until nothing is left to be swept."""
    while await mill.sweeper.step():
        pass


async def forget_input(mill: Mill, batch_id: str) -> None:
    """Delete the input File, as the API does."""
    batch = await mill.look(batch_id)

    def statements(tx: Transaction) -> None:
        key = delete_file(tx, organisation_id=batch.organisation_id, file_id=batch.object.input_file_id)
        assert key is not None
        drop_refs(tx, key=key)

    await mill.database.write(statements)


def bytes_left(mill: Mill) -> int:
    """Return how many keys have bytes, half-written ones included."""
    return len(set(mill.blobs.keys(before=float("inf"))))


@pytest.mark.parametrize("questions", [QUESTIONS, 2 * QUESTIONS], ids=["here", "in a child"])
async def test_a_slice_is_read_by_few_requests(mill: Mill, toxic: Toxic, questions: int) -> None:
    """The lines of a document are sent in a row, each Slice of 8 MiB is one read; the results are in the file's order.

    At the end the copy is gone like the Plan.
    """
    content, every = shuffled(questions=questions)
    backend = mill.echo()
    hand = mill.hand(backend)
    batch = await mill.batch(content)
    await hand.accept()
    await check(mill)
    slices = 1 + len(content) // (8 << 20)
    before = reads(toxic, "upload"), reads(toxic, "-lines")
    assert await mill.finish(hand, batch) is Status.COMPLETED
    assert (reads(toxic, "upload") - before[0], reads(toxic, "-lines") - before[1]) == (0, slices)
    assert documents(backend) == list(dict.fromkeys(documents(backend)))
    assert [result["custom_id"] for result in await mill.results(batch)] == every
    await check(mill)
    await sweep(mill)
    await check(mill)
    assert bytes_left(mill) == 3  # the input, which has a File, the output, and the order of its lines


async def test_the_file_may_go_meanwhile(mill: Mill) -> None:
    """From its acceptance on a batch with a copy needs the input no more: a deleted File's bytes go at once."""
    content, every = shuffled()
    hand = mill.hand(mill.echo())
    batch = await mill.batch(content)
    await hand.accept()
    await forget_input(mill, batch)
    await sweep(mill)
    left = {key.rpartition("-")[2] for key in mill.blobs.keys(before=float("inf"))}
    assert left == {"lines", "plan"}
    await check(mill)
    assert await mill.finish(hand, batch) is Status.COMPLETED
    assert [result["custom_id"] for result in await mill.results(batch)] == every
    await check(mill)
    await sweep(mill)
    await check(mill)
    assert bytes_left(mill) == 2


async def test_lines_that_were_never_sent_have_their_ids(mill: Mill) -> None:
    """A cancelled batch names each line that was not answered by its custom_id, in the order of the file."""
    content, every = shuffled()
    hand = mill.hand(mill.echo(latency=1.0), window=8)
    batch = await mill.batch(content)
    await hand.accept()
    await mill.turn(hand, seconds=3)
    await mill.cancel(batch)
    await check(mill)
    assert await mill.finish(hand, batch) is Status.CANCELLED
    done = [result["custom_id"] for result in await mill.results(batch)]
    rest = [result["custom_id"] for result in await mill.results(batch, "error")]
    assert 0 < len(done) < COUNT
    assert done == [name for name in every if name in done]
    assert rest == [name for name in every if name not in done]
    await check(mill)


async def test_what_is_in_order_is_not_copied(mill: Mill, toxic: Toxic) -> None:
    """Nothing is written for a file whose order is kept, and it is read twice: to be checked, and to be sent."""
    batch = await mill.batch(lines(600))
    assert await mill.finish(mill.hand(mill.echo()), batch) is Status.COMPLETED
    assert not [path for method, path in toxic.requests if method in {"PUT", "POST"} and "-lines" in path]
    assert reads(toxic, "upload") == 1 + 3  # once through, and once for each Slice
    await sweep(mill)
    assert bytes_left(mill) == 3


async def test_a_bad_file_is_not_copied(mill: Mill, toxic: Toxic) -> None:
    """Nor is one with a bad line at its end."""
    batch = await mill.batch(shuffled()[0] + b"{}\n")
    assert await mill.finish(mill.hand(mill.echo()), batch) is Status.FAILED
    assert not [path for method, path in toxic.requests if method in {"PUT", "POST"} and "-lines" in path]


async def test_nothing_is_copied_on_a_disk(tmp_path: Path) -> None:
    """There the lines are read where they are, and no row of a copy is ever announced."""
    mill = await Mill.build(tmp_path)
    batch = await mill.batch(shuffled()[0])
    await mill.hand(mill.echo()).accept()
    assert (await mill.look(batch)).object.status is Status.IN_PROGRESS
    assert "lines" not in await keys(mill, "writing") + await keys(mill, "ready") + await keys(mill, "doomed")
    await mill.database.close()


async def test_without_room_the_order_is_the_files(mill: Mill, bucket: Bucket, tmp_path: Path) -> None:
    """Where scratch has no space, no batch waits and none fails: the lines are sent as they stand in the file."""
    mill.blobs = Cramped(url=bucket.new_url(), scratch=tmp_path / "scratch", patience=0.05)
    content, every = shuffled()
    backend = mill.echo()
    batch = await mill.batch(content)
    assert await mill.finish(mill.hand(backend), batch) is Status.COMPLETED
    assert (await mill.look(batch)).crashes == 0
    sent = [call.body.decode().split('"content": "')[1].split('"')[0].lstrip("ABCDEFGHIJKL") for call in backend.calls]
    assert sent == every
    await sweep(mill)
    assert bytes_left(mill) == 3


async def test_a_lapsed_copy_is_swept(mill: Mill) -> None:
    """Who lost its lease after it had copied changes nothing, and an hour later there is nothing of it."""
    await mill.knows("echo")
    content, every = shuffled()
    batch = await mill.batch(content)
    slow, hand = mill.hand(mill.echo()).validator, mill.hand(mill.echo())
    claimed = await mill.database.write(slow._claim)
    assert claimed is not None
    found = await slow._validate(claimed)
    assert found.copy is not None
    await mill.clock.advance(LEASE + 1)
    await hand.accept()
    await mill.database.write(lambda tx: slow._conclude(tx, claimed.batch, found))
    assert await mill.finish(hand, batch) is Status.COMPLETED
    assert [result["custom_id"] for result in await mill.results(batch)] == every
    await sweep(mill)
    assert bytes_left(mill) == 3


async def test_a_dead_validators_copy_is_swept(mill: Mill) -> None:
    """Nothing stays of one that died over its copy: the rows of what it wrote are doomed after an hour."""
    await mill.knows("echo")
    batch = await mill.batch(shuffled()[0])
    dead, hand = mill.hand(mill.echo()).validator, mill.hand(mill.echo())
    claimed = await mill.database.write(dead._claim)
    assert claimed is not None
    await dead._validate(claimed)
    await mill.clock.advance(LEASE + 1)
    assert await mill.finish(hand, batch) is Status.COMPLETED
    await check(mill)
    assert await keys(mill, "writing") == ["lines", "plan"]
    sweeper = mill.sweeper
    await mill.clock.advance(3700)
    for _ in range(20):
        await sweeper.step()
    assert bytes_left(mill) == 3
    assert await keys(mill, "writing") == []


async def test_a_cancel_while_lines_are_copied_wins(mill: Mill) -> None:
    """The batch keeps its input until it is final, and the copy goes."""
    await mill.knows("echo")
    hand = mill.hand(mill.echo())
    batch = await mill.batch(shuffled()[0])
    claimed = await mill.database.write(hand.validator._claim)
    assert claimed is not None
    await mill.cancel(batch)
    found = await hand.validator._validate(claimed)
    await mill.database.write(lambda tx: hand.validator._conclude(tx, claimed.batch, found))
    await check(mill)
    assert await mill.finish(hand, batch) is Status.CANCELLED
    await sweep(mill)
    await check(mill)
    assert bytes_left(mill) == 1


@pytest.mark.parametrize("fault", [Fault.ERROR, Fault.RESET, Fault.LOST_REPLY], ids=lambda fault: fault.value)
async def test_a_bucket_that_goes_away_in_the_middle_is_waited_for(mill: Mill, toxic: Toxic, fault: Fault) -> None:
    """The copy is made anew under another key, no failure is counted, and nothing of the first one stays."""
    content, every = shuffled()
    hand = mill.hand(mill.echo())
    batch = await mill.batch(content)
    toxic.once(fault, method="PUT", path="-1-lines", times=50)
    await hand.scout.step()
    assert await hand.validator.step()
    assert toxic.met[fault] > 0
    assert (await mill.look(batch)).crashes == 0
    assert await mill.finish(hand, batch) is Status.COMPLETED
    assert [result["custom_id"] for result in await mill.results(batch)] == every
    await sweep(mill)
    await check(mill)
    assert bytes_left(mill) == 3
