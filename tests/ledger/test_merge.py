"""What can be read of a batch's Results."""

import fnmatch
import json
import random
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from batchmill.blobs.blobs import BlobMissing, Blobs
from batchmill.ledger.ledger import Ledger, Portion
from batchmill.ledger.merge import Rest, merge_results
from batchmill.ledger.segment import DamagedSegment, Result
from batchmill.store.database import Database
from batchmill.store.slice import list_segments, list_slices
from blobs.put import EVER, content, put
from ledger.work import add_work, claim, portion, result, whole
from store.rows import add_organisations, get_batch

REST = Rest(code="batch_expired", message="Not run.")


@pytest.fixture(autouse=True)
async def _organisations(database: Database) -> None:
    await database.write(add_organisations)


@dataclass(frozen=True)
class Files:
    """The lines of the two files, and how many were never answered."""

    output: list[bytes]
    error: list[bytes]
    rest: int


async def merge(database: Database, blobs: Blobs, rest: Rest | None = None, **bounds: int) -> Files:
    """Read the one batch's Results."""
    batch = await database.read(get_batch)
    slices = await database.read(lambda tx: list_slices(tx, batch_id="batch_1"))
    segments = await database.read(lambda tx: list_segments(tx, batch_id="batch_1"))
    parts = list(merge_results(blobs=blobs, batch=batch, slices=slices, segments=segments, rest=rest, **bounds))
    return Files(
        output=[bytes(text) for part in parts for text in part.output],
        error=[bytes(text) for part in parts for text in part.error],
        rest=sum(len(part.rest) for part in parts),
    )


def change(blobs: Blobs, pattern: str, how: Callable[[bytes], bytes]) -> None:
    """Spoil the one blob whose key is like that."""
    (key,) = fnmatch.filter(blobs.keys(before=EVER), pattern)
    data = how(content(blobs, key))
    blobs.delete(key)
    put(blobs, key, data)


async def test_results_are_read_in_input_order(ledger: Ledger, database: Database, blobs: Blobs) -> None:
    """However Results came, over however many commits, they are read line by line, Slice by Slice."""
    await add_work(database, blobs, slices=3)
    claims = await claim(ledger)
    done: dict[int, list[int]] = {held.slice.ordinal: [] for held in claims}
    todo = [(held, index) for held in claims for index in range(8)]
    random.Random(7).shuffle(todo)  # noqa: S311 - an order, the same each time
    for held, index in todo:
        one = Result(
            index=index, succeeded=index != 3, attempts=2, text=b"%d/%d\n" % (held.slice.ordinal, index), usage=None
        )
        await ledger.commit([portion(held, [one], before=done[held.slice.ordinal])])
        done[held.slice.ordinal].append(index)
    read = await merge(database, blobs)
    assert read.output == [b"%d/%d\n" % (n, i) for n in range(3) for i in range(8) if i != 3]
    assert read.error == [b"%d/3\n" % n for n in range(3)]
    assert read.rest == 0


@pytest.mark.parametrize("bounds", [{}, {"in_memory": 1}, {"in_memory": 1, "in_scratch": 100}], ids=str)
@pytest.mark.parametrize("kept", [24, 17, 1, 0])
async def test_a_plan_in_another_order_makes_the_same_files(
    ledger: Ledger, database: Database, blobs: Blobs, bounds: dict[str, int], kept: int
) -> None:
    """Results stand in the order of the input, in memory and out of scratch, and open lines among them."""
    chance = random.Random(kept)  # noqa: S311 - an order, the same each time
    order = [*chance.sample(range(16), 16), *chance.sample(range(16, 24), 8)]
    await add_work(database, blobs, slices=3, order=order)
    answered = set(chance.sample(range(24), kept))
    for held in await claim(ledger):
        of_slice = order[held.slice.first : held.slice.first + 8]
        results = [
            Result(index=index, succeeded=line % 5 > 0, attempts=1, text=b'"id-%d" answered\n' % line, usage=None)
            for index, line in enumerate(of_slice)
            if line in answered
        ]
        if results:
            await ledger.commit([portion(held, results)])
    read = await merge(database, blobs, REST, **bounds)
    assert read.rest == 24 - kept
    assert read.output == [b'"id-%d" answered\n' % line for line in range(24) if line in answered and line % 5]
    failed = [line for line in range(24) if line not in answered or line % 5 == 0]
    for line, text in zip(failed, read.error, strict=True):
        assert b'"id-%d"' % line in text
        assert (b"answered\n" in text) == (line in answered)


async def test_open_lines_become_the_rest(ledger: Ledger, database: Database, blobs: Blobs) -> None:
    """A line without a Result gets one with its own custom_id, the code and the message, never attempted."""
    await add_work(database, blobs, slices=2, lines=3)
    (held,) = await claim(ledger, slices=1)
    await ledger.commit([portion(held, [result(1)])])
    read = await merge(database, blobs, REST)
    assert read.output == [result(1).text]
    assert read.rest == 5
    for number, line in zip((0, 2, 3, 4, 5), read.error, strict=True):
        assert b'"custom_id":"id-%d"' % number in line
        assert b'"code":"batch_expired","message":"Not run."' in line
        assert line.endswith(b"\n")
    assert len({line.split(b",")[0] for line in read.error}) == 5  # each its own id


async def test_answered_and_open_lines_keep_their_places(ledger: Ledger, database: Database, blobs: Blobs) -> None:
    """In the error file lines that failed and lines never run stand in input order, not in two heaps."""
    await add_work(database, blobs, slices=1, lines=4)
    (held,) = await claim(ledger)
    await ledger.commit([portion(held, [result(2, succeeded=False)])])
    read = await merge(database, blobs, REST)
    assert [b"batch_expired" in line for line in read.error] == [True, True, False, True]
    assert read.rest == 3


async def test_lines_far_apart_keep_their_ids(ledger: Ledger, database: Database, blobs: Blobs) -> None:
    """Where blank lines set the lines of a Slice too far apart to be read at once, each keeps its own custom_id."""
    await add_work(database, blobs, slices=1, lines=3, gap=9 << 20)
    (held,) = await claim(ledger)
    await ledger.commit([portion(held, [result(1)])])
    read = await merge(database, blobs, REST)
    assert [json.loads(line)["custom_id"] for line in read.error] == ["id-0", "id-2"]


async def test_a_hole_without_a_rest_is_damage(ledger: Ledger, database: Database, blobs: Blobs) -> None:
    """Where every line must be done one that is not is an error, never a file with a line less."""
    await add_work(database, blobs, slices=1)
    (held,) = await claim(ledger)
    await ledger.commit([portion(held, map(result, range(7)))])
    with pytest.raises(DamagedSegment, match="1 lines"):
        await merge(database, blobs)


async def test_a_line_that_stands_twice_is_damage(ledger: Ledger, database: Database, blobs: Blobs) -> None:
    """Two Results of one line are an error, never two lines of a file."""
    await add_work(database, blobs, slices=1)
    (held,) = await claim(ledger)
    await ledger.commit([portion(held, [result(0)])])
    await ledger.commit([portion(held, [result(0)])])
    with pytest.raises(DamagedSegment, match="line 0 of Slice 0 stands twice"):
        await merge(database, blobs, REST)


async def test_a_done_line_without_a_result_is_damage(ledger: Ledger, database: Database, blobs: Blobs) -> None:
    """A line that the bitmap says is done is never taken for one that was not run."""
    await add_work(database, blobs, slices=1)
    (held,) = await claim(ledger)
    await ledger.commit([portion(held, [result(0)], before=[5])])
    with pytest.raises(DamagedSegment, match=r"lines \[5\]"):
        await merge(database, blobs, REST)


async def test_a_result_beyond_the_slice_is_damage(ledger: Ledger, database: Database, blobs: Blobs) -> None:
    """A Result of a line that the Slice does not have is an error."""
    await add_work(database, blobs, slices=1, lines=8)
    (held,) = await claim(ledger)
    await ledger.commit([Portion(slice=held.slice, results=[result(0), result(8)], done=b"\x01", closed=False)])
    with pytest.raises(DamagedSegment, match=r"lines \[8\]"):
        await merge(database, blobs, REST)


async def test_a_flipped_bit_in_a_stored_blob_is_damage(ledger: Ledger, database: Database, blobs: Blobs) -> None:
    """Bytes that are not those that were committed are an error, never a wrong line."""
    await add_work(database, blobs, slices=1)
    await ledger.commit([whole(held) for held in await claim(ledger)])
    change(blobs, "commit_*", lambda data: data[:20] + bytes([data[20] ^ 1]) + data[21:])
    with pytest.raises(DamagedSegment, match="checksum"):
        await merge(database, blobs)


@pytest.mark.parametrize("pattern", ["commit_*", "*-plan", "*-input"])
async def test_bytes_that_were_cut_short_are_missing(
    ledger: Ledger, database: Database, blobs: Blobs, pattern: str
) -> None:
    """If a Segment, the Plan or the input ends too early, that is an error, never a line without its custom_id."""
    await add_work(database, blobs, slices=2)
    (held,) = await claim(ledger, slices=1)
    await ledger.commit([whole(held)])
    change(blobs, pattern, lambda data: data[:-7])
    with pytest.raises(BlobMissing):
        await merge(database, blobs, REST)
