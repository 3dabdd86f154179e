"""Pages of Results in the order in which they came: while a batch runs, across its end, and after its clearing."""

from collections.abc import Callable
from contextlib import closing
from typing import Any, BinaryIO

import pytest
from sqlalchemy import delete, update

from batchmill.backends.router import Router
from batchmill.blobs.blobs import BlobMissing, Blobs, Written
from batchmill.blobs.space import Boundless
from batchmill.engine.finalizer import Finalizer
from batchmill.engine.sweeper import Sweeper
from batchmill.ledger.ledger import Claim, Ledger
from batchmill.ledger.order import DamagedOrder, Order, order_bytes, read_order
from batchmill.ledger.page import Page, Pages, ResultsGone, WrongPosition
from batchmill.ledger.segment import DamagedSegment, Result
from batchmill.spec.cursor import START, Position
from batchmill.spec.family import FAILED, NOTHING, Wanted
from batchmill.spec.groups import group_of
from batchmill.spec.results import answered, result_id
from batchmill.spec.states import FINAL, Event, Status
from batchmill.store.batch import Batch, advance
from batchmill.store.database import Database
from batchmill.store.file import delete_file
from batchmill.store.tables import batch, blob
from blobs.put import content, put
from fakeclock import FakeClock
from ledger.work import add_work, claim, portion
from store.rows import LAPSED, LEASE, MINE, NOW, add_organisations, get_batch

ALL = Wanted()


@pytest.fixture(autouse=True)
async def _organisations(database: Database, clock: FakeClock) -> None:
    clock.time = float(NOW)
    await database.write(add_organisations)


def text_of(claimed: Claim, index: int, *, status: int = 200) -> bytes:
    """Return the line of a result."""
    line = claimed.records[index].line
    body = b'{"choices":[]}' if status == 200 else b'{"error":{"message":"no %d","code":"c%d"}}' % (line, status)
    return answered(result_id("batch_1", line), b'"id-%d"' % (line - 1), status, "req", body)


def some(claimed: Claim, indices: list[int], *, status: int = 200) -> list[Result]:
    """Return the Results of these lines of a Slice."""
    return [
        Result(index=index, succeeded=status == 200, attempts=1, text=text_of(claimed, index, status=status))
        for index in indices
    ]


class Stage:
    """The one batch's storage, what reads its results, and what ends it."""

    def __init__(self, database: Database, blobs: Blobs, clock: FakeClock, ledger: Ledger) -> None:
        self.database = database
        self.blobs = blobs
        self.ledger = ledger
        self.pages = Pages(database=database, blobs=blobs, clock=clock)
        mine: dict[str, Any] = {"database": database, "blobs": blobs, "clock": clock, "room": Boundless()}
        self._clock = clock
        self._finalizer = Finalizer(worker_id="w9", lease=LEASE, **mine)
        self._sweeper = Sweeper(router=Router([]), **mine)

    async def batch(self) -> Batch:
        """Return it as it is."""
        return await self.database.read(get_batch)

    async def seal(self, event: Event | None = None) -> None:
        """Let the event happen, and seal what is closing."""
        if event is not None:
            now = NOW + 7200 * (event is Event.WINDOW_PASSED)
            move: dict[str, Any] = {"batch_id": "batch_1", "status": Status.IN_PROGRESS, "event": event, "now": now}
            assert await self.database.write(lambda tx: advance(tx, **move))
            await self._clock.advance(LEASE + 1)  # whoever held its Slices is gone
        assert await self._finalizer.step()
        assert (await self.batch()).object.status in FINAL

    async def clear(self) -> None:
        """Let nothing of the Segments remain."""
        while await self._sweeper.step():
            pass
        assert (await self.batch()).input_key is None

    async def sweep_later(self) -> None:
        """Sweep ten minutes later, when also that is looked for which comes seldom."""
        await self._clock.advance(601)
        while await self._sweeper.step():
            pass


@pytest.fixture
def stage(database: Database, blobs: Blobs, clock: FakeClock, ledger: Ledger) -> Stage:
    """Set it."""
    return Stage(database, blobs, clock, ledger)


async def read(stage: Stage, start: Position = START, wanted: Wanted = ALL, limit: int = 1000) -> Page:
    """Read a page of the one batch."""
    return await stage.pages.page(batch_id="batch_1", start=start, wanted=wanted, limit=limit)


async def walk(stage: Stage, wanted: Wanted = ALL, limit: int = 1000) -> list[bytes]:
    """Read pages until there are no more."""
    texts: list[bytes] = []
    at = START
    for _ in range(1000):
        page = await read(stage, at, wanted, limit)
        texts += [text for text, _ in page.results]
        at = page.next
        if not page.has_more:
            return texts
    raise AssertionError("it never ended")


async def test_a_walk_sees_each_line_once_whatever_happens_to_the_batch(
    ledger_of: Callable[..., Ledger], stage: Stage
) -> None:
    """Pages of three lines while a batch runs, changes owner, is sealed and cleared: each line once, in its order."""
    await add_work(stage.database, stage.blobs, slices=3, order=[*range(12, 24), *range(12)])
    dead, heir = ledger_of("w1", lease=LAPSED), ledger_of("w2")
    held = await claim(dead)
    expected: list[bytes] = []
    seen: list[bytes] = []
    at = START

    async def look(limit: int = 3) -> Page:
        nonlocal at
        page = await read(stage, at, limit=limit)
        seen.extend(text for text, _ in page.results)
        for text, behind in page.results:  # each line's own position leads on just as well
            after = await read(stage, behind, limit=1)
            seen_at = expected.index(text) + 1
            assert [t for t, _ in after.results] == expected[seen_at : seen_at + 1]
        at = page.next
        return page

    assert (await look()).complete is False
    commits = [({0: [7, 2]}, 200), ({0: [0], 2: [1, 5]}, 429), ({1: [6, 3, 1, 0]}, 200)]
    done: dict[int, list[int]] = {0: [], 1: [], 2: []}
    for by_slice, status in commits:
        parts = [portion(held[s], some(held[s], i, status=status), before=done[s]) for s, i in by_slice.items()]
        assert not await dead.commit(parts)
        for s, indices in by_slice.items():
            done[s] += indices
            expected += [text_of(held[s], index, status=status) for index in indices]
        await look()
    held = await claim(heir)  # the dead worker's leases have lapsed
    for s in (2, 0, 1):
        rest = [index for index in reversed(range(8)) if index not in done[s]]
        assert not await heir.commit([portion(held[s], some(held[s], rest), before=done[s])])
        expected += [text_of(held[s], index) for index in rest]
        await look(2)
    assert not (await look(2)).complete
    await stage.seal()
    await look()
    await stage.clear()
    while not (await look()).complete:
        pass
    assert seen == expected
    assert len(set(seen)) == 24
    assert await walk(stage, limit=5) == expected


@pytest.mark.parametrize("event", [Event.CANCEL, Event.WINDOW_PASSED])
async def test_lines_never_answered_come_last_in_the_order_of_the_input(stage: Stage, event: Event) -> None:
    """What is cancelled or expired ranks behind all that was answered."""
    await add_work(stage.database, stage.blobs, slices=2, order=[*range(8, 16), *range(8)])
    (held, _) = await claim(stage.ledger)
    assert not await stage.ledger.commit([portion(held, some(held, [5, 1]))])
    answers = [text_of(held, index) for index in (5, 1)]
    page = await read(stage)
    assert [text for text, _ in page.results] == answers
    await stage.seal(event)
    code = {Event.CANCEL: "batch_cancelled", Event.WINDOW_PASSED: "batch_expired"}[event]
    rest = await read(stage, page.next)
    open_lines = [n for n in range(16) if n not in (13, 9)]
    assert [group_of(text)[0] for text, _ in rest.results] == [f"id-{n}" for n in open_lines]
    assert {group_of(text)[1].code for text, _ in rest.results} == {code}
    assert rest.complete
    assert await walk(stage) == answers + [text for text, _ in rest.results]


@pytest.mark.parametrize("ended", [False, True])
async def test_a_filter_lets_some_through(stage: Stage, *, ended: bool) -> None:
    """By outcome, and failed ones by their group, running and final alike; a page that holds none still goes on."""
    await add_work(stage.database, stage.blobs, slices=1, lines=12)
    (held,) = await claim(stage.ledger)
    statuses = {index: 200 if index % 3 else 500 + index % 2 for index in range(12)}
    for index, status in statuses.items():
        assert not await stage.ledger.commit([portion(held, some(held, [index], status=status), before=range(index))])
    if ended:
        await stage.seal()
    texts = {index: text_of(held, index, status=status) for index, status in statuses.items()}

    async def expect(wanted: Wanted, indices: list[int]) -> None:
        for limit in (1, 2, 100):
            assert await walk(stage, wanted, limit) == [texts[index] for index in indices]

    await expect(Wanted(failed=False), [1, 2, 4, 5, 7, 8, 10, 11])
    await expect(Wanted(succeeded=False), [0, 3, 6, 9])
    even = group_of(texts[0])[1].id
    assert even == group_of(texts[6])[1].id != group_of(texts[3])[1].id
    await expect(Wanted(succeeded=False, groups=frozenset({even})), [0, 6])
    await expect(Wanted(besides=frozenset({even})), [1, 2, 3, 4, 5, 7, 8, 9, 10, 11])
    await expect(Wanted(succeeded=False, groups=frozenset({"f" * 16})), [])


async def test_a_page_reads_about_so_many_bytes(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """However few lines are wanted, a page ends when it has read its share; the next goes on from there."""
    await add_work(stage.database, stage.blobs, slices=1, lines=12)
    (held,) = await claim(stage.ledger)
    for index in range(12):
        assert not await stage.ledger.commit([portion(held, some(held, [index]), before=range(index))])
    size = len(text_of(held, 0))
    monkeypatch.setattr("batchmill.ledger.page._BYTES", 4 * size + 100)
    for _ in range(2):
        page = await read(stage)
        assert 3 <= len(page.results) <= 4
        assert page.has_more
        none = await read(stage, wanted=Wanted(groups=frozenset({"0"}), succeeded=False))
        assert (none.results, none.has_more) == ([], not none.complete)
        assert len(await walk(stage)) == 12
        monkeypatch.setattr("batchmill.ledger.page._BYTES", 1)
        assert len((await read(stage)).results) == 1
        assert len(await walk(stage)) == 12
        monkeypatch.setattr("batchmill.ledger.page._BYTES", 4 * size + 100)
        if (await stage.batch()).object.status is Status.FINALIZING:
            await stage.seal()


async def finished(stage: Stage) -> list[bytes]:
    """Let a batch be completed, each third line failed; return its lines in their order."""
    await add_work(stage.database, stage.blobs, slices=1, lines=12)
    (held,) = await claim(stage.ledger)
    good, bad = [i for i in range(11, -1, -1) if i % 3], [i for i in range(12) if i % 3 == 0]
    assert not await stage.ledger.commit([portion(held, some(held, good) + some(held, bad, status=400))])
    await stage.seal()
    await stage.clear()
    return [text_of(held, index) for index in good] + [text_of(held, index, status=400) for index in bad]


async def test_a_batch_without_an_order_is_read_in_the_files_order(
    stage: Stage,
) -> None:
    """One that was finalized before orders were kept: the output file, then the error file, with cursors of its own."""
    texts = await finished(stage)
    early = (await read(stage, limit=2)).next
    await stage.database.write(lambda tx: tx.connection.execute(update(batch).values(order_key=None)))
    expected = [*reversed(texts[:8]), *texts[8:]]
    for limit in (1, 3, 8, 100):
        assert await walk(stage, limit=limit) == expected
        assert await walk(stage, Wanted(succeeded=False), limit) == expected[8:]
        assert await walk(stage, Wanted(failed=False), limit) == expected[:8]
    assert (await read(stage, limit=12)).complete
    for none in (early, Position(5, file="error"), Position(1 << 40, file="output")):
        with pytest.raises(WrongPosition):
            await read(stage, none)


async def test_a_position_in_a_file_is_none_in_an_order(
    stage: Stage,
) -> None:
    """It is refused, running and final."""
    await add_work(stage.database, stage.blobs, batch_id="batch_1", slices=1)
    with pytest.raises(WrongPosition):
        await read(stage, Position(0, file="output"))
    await stage.seal(Event.CANCEL)
    with pytest.raises(WrongPosition):
        await read(stage, Position(0, file="output"))


async def test_a_file_that_is_deleted_takes_its_lines_along(
    stage: Stage,
) -> None:
    """Those of the other stay where they are; to ask for what is gone alone is answered so, and not by an empty end."""
    texts = await finished(stage)
    facts = (await stage.batch()).object
    key = (await stage.batch()).order_key

    async def delete_one(file_id: str | None) -> None:
        gone = await stage.database.write(lambda tx: delete_file(tx, organisation_id=MINE, file_id=str(file_id)))
        await stage.database.write(
            lambda tx: tx.connection.execute(update(blob).where(blob.c.key == gone).values(refs=0))
        )
        await stage.database.write(lambda tx: tx.connection.execute(delete(blob).where(blob.c.key == gone)))
        stage.blobs.delete(str(gone))

    await delete_one(facts.output_file_id)
    await stage.sweep_later()
    assert await walk(stage, limit=3) == texts[8:]
    assert await walk(stage, FAILED) == texts[8:]
    with pytest.raises(ResultsGone):
        await read(stage, wanted=Wanted(failed=False))
    assert (await stage.batch()).order_key == key
    await delete_one(facts.error_file_id)
    with pytest.raises(ResultsGone):
        await read(stage)
    await stage.sweep_later()
    assert (await stage.batch()).order_key is None
    assert key not in set(stage.blobs.keys(before=float("inf")))
    with pytest.raises(ResultsGone):
        await read(stage)


@pytest.mark.parametrize("how", ["flipped", "shorter", "gone", "of another"])
async def test_a_damaged_order_is_a_fault(stage: Stage, how: str) -> None:
    """Never other lines, nor fewer."""
    await finished(stage)
    key = str((await stage.batch()).order_key)
    data = content(stage.blobs, key)
    assert len(data) == order_bytes(12)
    stage.blobs.delete(key)
    if how == "flipped":
        put(stage.blobs, key, data[:20] + bytes([data[20] ^ 1]) + data[21:])
    elif how == "shorter":
        put(stage.blobs, key, data[:-1])
    elif how == "of another":
        (file,) = {k for k in stage.blobs.keys(before=float("inf")) if k.endswith("-output")}
        lines = content(stage.blobs, file)
        stage.blobs.delete(file)
        put(stage.blobs, file, b" " + lines[:-1])
        put(stage.blobs, key, data)
    with pytest.raises((DamagedOrder, BlobMissing)):
        await read(stage)


async def test_where_there_are_none_a_page_says_so_at_once(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a final batch, however many other Results there are to be passed over."""
    monkeypatch.setattr("batchmill.ledger.page._PLACES", 2)
    await add_work(stage.database, stage.blobs, slices=1, lines=12)
    (held,) = await claim(stage.ledger)
    assert not await stage.ledger.commit([portion(held, some(held, range(12)))])
    await stage.seal()
    for wanted in (FAILED, NOTHING):
        page = await read(stage, wanted=wanted)
        assert (page.results, page.complete) == ([], True)


def test_an_order_is_the_same_in_scratch(blobs: Blobs) -> None:
    """That of many lines lies there; what is written is that of memory, and a fault on its way up is seen as it is."""
    lines = 600
    ranks = [at * 7 % lines for at in range(lines)]
    with blobs.scratch() as scratch:
        written = [_ordered(blobs, f"order-{at}", ranks, given) for at, given in enumerate((None, scratch))]
    assert written[0] == written[1]
    found = read_order(blobs, "order-1", lines=lines, first=0, count=lines)
    assert [place.length for place in found] == [ranks.index(rank) for rank in range(lines)]


def _ordered(blobs: Blobs, key: str, ranks: list[int], scratch: BinaryIO | None) -> Written:
    order = Order(scratch=scratch, lines=len(ranks))
    for first in range(0, len(ranks), 200):
        some = range(first, first + 200)
        order.add(lengths=list(some), succeeded=[at % 3 for at in some], ranks=ranks[first : first + 200])
    writer = blobs.writer(key)
    order.write(writer)
    with pytest.raises(IndexError), closing(order):
        order.add(lengths=[1], succeeded=[1], ranks=[len(ranks)])
    return writer.finish()


async def test_a_damaged_segment_is_a_fault(stage: Stage) -> None:
    """While the batch runs the checksum of each Segment is looked at."""
    await add_work(stage.database, stage.blobs, slices=1)
    (held,) = await claim(stage.ledger)
    assert not await stage.ledger.commit([portion(held, some(held, [1, 2]))])
    (key,) = {k for k in stage.blobs.keys(before=float("inf")) if k.startswith("commit")}
    data = content(stage.blobs, key)
    stage.blobs.delete(key)
    put(stage.blobs, key, data.replace(b"choices", b"chances"))
    with pytest.raises(DamagedSegment):
        await read(stage)


async def test_a_batch_that_has_no_lines_is_read_to_its_end(stage: Stage) -> None:
    """One that failed, or ended before it was validated."""
    await add_work(stage.database, stage.blobs, slices=1)
    await stage.database.write(lambda tx: tx.connection.execute(update(batch).values(status="failed", total=0)))
    page = await read(stage)
    assert (page.results, page.has_more, page.complete) == ([], False, True)
