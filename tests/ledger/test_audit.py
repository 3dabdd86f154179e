"""The audit: each kind of damage, planted by hand in a real store, is found and named; a sound store has none."""

from collections.abc import AsyncIterator, Callable
from contextlib import closing
from pathlib import Path

import pytest

from batchmill.blobs.blobs import Blobs
from batchmill.ledger.audit import Audit
from batchmill.ledger.finding import NOTES, Finding, Kind, Tally
from batchmill.ledger.order import Order
from batchmill.spec.states import Status
from batchmill.store.blob import drop_refs
from batchmill.store.database import Transaction
from batchmill.store.slice import delete_slices
from engine.mill import Mill, line, lines
from ledger.byhand import Meanwhile, age, batches, change, delete_file, put, query, rewrite, stored

LINES = 600  # three Slices


@pytest.fixture
async def mill(tmp_path: Path) -> AsyncIterator[Mill]:
    """A store with a batch in every condition, one of them half done and still running."""
    made = await Mill.build(tmp_path)
    hand = made.hand(made.echo())
    cleared = await made.batch(lines(300))
    assert await made.finish(hand, cleared) is Status.COMPLETED
    while await made.sweeper.step():
        pass
    assert await made.finish(hand, await made.batch(lines(20))) is Status.COMPLETED
    assert await made.finish(hand, await made.batch(b"{}\n")) is Status.FAILED
    cancelled = await made.batch(lines(40))
    await hand.validator.step()
    await made.cancel(cancelled)
    assert await made.finish(hand, cancelled) is Status.CANCELLED
    slow = made.hand(made.echo(latency=1.0), window=8)
    for text in (lines(LINES), lines(30)):
        await made.batch(text)
        await slow.scout.step()
        await slow.validator.step()
    await made.turn(slow, seconds=5)
    await made.cancel((await batches(made, "in_progress"))[1])
    yield made
    await made.database.close()


async def test_a_sound_store_has_no_findings(mill: Mill) -> None:
    """A store with batches in every condition, a half-done one among them, has no damage; all of it is looked at."""
    audit = Audit(database=mill.database, blobs=mill.blobs, clock=mill.clock)
    assert [finding async for finding in audit.findings() if finding.is_damage] == []
    ready = dict(query(mill, "SELECT key, bytes FROM blob WHERE state = 'ready'"))
    tables = ("file", "blob", "batch", "slice", "segment")
    rows = sum(len(query(mill, f"SELECT 1 FROM {table}")) for table in tables)  # noqa: S608 - names of ours
    ((recorded,),) = query(mill, "SELECT sum(lines) FROM segment")
    assert 20 < recorded < LINES
    assert audit.tally == Tally(rows=rows, blobs=len(ready), bytes=sum(ready.values()), lines=recorded + 300 + 20 + 40)


_DOUBLED = (
    "INSERT INTO segment SELECT batch_id, slice, seq + 1000, organisation_id, blob_key, offset, bytes, lines, crc32"
    " FROM segment LIMIT 1"
)
_ROWS = {
    "refs": ("UPDATE blob SET refs = refs + 1 WHERE state = 'ready'", Kind.REFS),
    "a blob's size": ("UPDATE blob SET bytes = bytes + 1 WHERE sha256 IS NOT NULL", Kind.BYTES),
    "a blob's hash": ("UPDATE blob SET sha256 = '00' WHERE sha256 IS NOT NULL", Kind.BYTES),
    "a blob's row": ("DELETE FROM blob WHERE key IN (SELECT plan_key FROM batch WHERE id IN RUNNING)", Kind.BYTES),
    "a commit's row": ("DELETE FROM blob WHERE key IN (SELECT blob_key FROM segment)", Kind.BYTES),
    "a File's size": ("UPDATE file SET bytes = bytes + 1", Kind.BYTES),
    "an organisation": ("DELETE FROM organisation", Kind.DATABASE),
    "completed": ("UPDATE batch SET completed = completed + 1 WHERE id IN RUNNING", Kind.COUNTS),
    "failed": ("UPDATE batch SET failed = failed + 1 WHERE id IN RUNNING", Kind.COUNTS),
    "open Slices": ("UPDATE batch SET open_slices = open_slices + 1 WHERE id IN RUNNING", Kind.COUNTS),
    "a final total": ("UPDATE batch SET total = total + 1 WHERE id IN DONE", Kind.COUNTS),
    "final counts": ("UPDATE batch SET completed = completed - 1, failed = 1 WHERE id IN DONE", Kind.LINES),
    "an order": ("UPDATE batch SET order_key = NULL WHERE id IN DONE", Kind.REFS),
    "an output File": ("UPDATE batch SET output_file_id = NULL WHERE id IN DONE", Kind.COUNTS),
    "a running total": ("UPDATE batch SET total = total + 1 WHERE id IN RUNNING", Kind.SLICES),
    "a Slice's place": ("UPDATE slice SET first = first + 1 WHERE ordinal = 1 AND batch_id IN RUNNING", Kind.SLICES),
    "a Slice": ("DELETE FROM slice WHERE ordinal = 0 AND batch_id IN RUNNING", Kind.SLICES),
    "all Slices": ("DELETE FROM slice WHERE batch_id IN RUNNING", Kind.SLICES),
    "a closed Slice": ("UPDATE slice SET open = 0 WHERE ordinal = 1 AND batch_id IN RUNNING", Kind.SLICES),
    "a bitmap": ("UPDATE slice SET done = zeroblob(32) WHERE batch_id IN RUNNING AND ordinal = 0", Kind.SEGMENT),
    "a checksum": ("UPDATE segment SET crc32 = crc32 + 1", Kind.SEGMENT),
    "a Segment's lines": ("UPDATE segment SET lines = lines + 1", Kind.SEGMENT),
    "a Segment's place": ("UPDATE segment SET offset = offset + 1", Kind.SEGMENT),
    "a Segment": ("DELETE FROM segment WHERE seq = 1 AND batch_id IN RUNNING", Kind.SEGMENT),
    "a doubled Segment": (_DOUBLED, Kind.SEGMENT),
    "two ends": ("UPDATE batch SET cancelled_at = 1 WHERE id IN DONE", Kind.STATE),
    "a skipped state": ("UPDATE batch SET finalizing_at = NULL WHERE id IN DONE", Kind.STATE),
    "an early end": ("UPDATE batch SET completed_at = 1 WHERE id IN RUNNING", Kind.STATE),
    "a status": ("UPDATE batch SET status = 'expired' WHERE id IN DONE", Kind.STATE),
    "a reason": ("UPDATE batch SET errors = NULL WHERE status = 'failed'", Kind.STATE),
}  # fmt: skip


@pytest.mark.parametrize(("sql", "kind"), _ROWS.values(), ids=_ROWS)
async def test_a_wrong_row_is_found(mill: Mill, sql: str, kind: Kind) -> None:
    """A row that says what is not so is damage of its kind."""
    assert change(mill, sql) > 0
    assert kind in {finding.kind for finding in await findings(mill) if finding.is_damage}


async def test_an_order_that_leads_astray_is_found(mill: Mill) -> None:
    """One that is whole, and leads to other lines than those of the result files, is damage of the batch's lines."""
    ((batch_id, key, lines),) = query(mill, "SELECT id, order_key, total FROM batch WHERE id IN DONE")
    path = dict(stored(mill))[key]
    before = len(path.read_bytes())
    path.unlink()
    with mill.blobs.scratch() as scratch, closing(Order(scratch=scratch, lines=lines)) as order:
        order.add(lengths=[1] * lines, succeeded=[True] * lines, ranks=range(lines))
        writer = mill.blobs.writer(key)
        order.write(writer)
        written = writer.finish()
    assert written.bytes == before
    change(mill, "UPDATE blob SET sha256 = ? WHERE key = ?", written.sha256, key)
    assert [(f.kind, f.what) for f in await findings(mill) if f.is_damage] == [(Kind.LINES, batch_id)]


async def test_a_bit_that_has_flipped_is_found_in_every_blob(mill: Mill) -> None:
    """One bit flipped in the middle of any blob, or in its first or last byte, is found, and nothing else is."""
    paths = dict(stored(mill))
    keys = [key for (key,) in query(mill, "SELECT key FROM blob WHERE state = 'ready'")]
    kinds = {key.partition("_")[0] for key in keys}
    assert kinds == {"upload", "batch", "commit"}
    missed = []
    for key in keys:
        whole = paths[key].read_bytes()
        for at in {0, len(whole) // 2, len(whole) - 1}:
            paths[key].write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
            found = [finding for finding in await findings(mill) if finding.is_damage]
            if not any(key in finding.what + finding.detail for finding in found):
                missed.append((key, at, found))
        paths[key].write_bytes(whole)
    assert missed == []
    assert [finding for finding in await findings(mill) if finding.is_damage] == []


@pytest.mark.parametrize("how", ["gone", "cut", "longer"])
async def test_bytes_that_are_not_as_long_as_promised_are_found(mill: Mill, how: str) -> None:
    """A blob whose bytes are gone, cut off or more than its row says is damage that names it, whatever it is for."""
    paths = dict(stored(mill))
    for (key,) in query(mill, "SELECT key FROM blob WHERE state = 'ready'"):
        whole = paths[key].read_bytes()
        if how == "gone":
            paths[key].unlink()
        else:
            paths[key].write_bytes(whole[:-1] if how == "cut" else whole + b"x")
        assert (Kind.BYTES, key) in {(finding.kind, finding.what) for finding in await findings(mill)}
        paths[key].write_bytes(whole)


_FILES: dict[str, Callable[[list[bytes]], list[bytes]]] = {
    "a line twice": lambda found: [found[0], *found],
    "a line missing": lambda found: found[:5] + found[6:],
    "two lines for each other": lambda found: [found[1], found[0], *found[2:]],
    "one line in place of another": lambda found: [found[1], *found[1:]],
    "another custom_id": lambda found: [found[0].replace(b'"r-0"', b'"r-x"'), *found[1:]],
    "no JSON": lambda found: [*found[:-1], found[-1][:-3] + b"\n"],
    "a wrong byte": lambda found: [*found[:-1], found[-1].replace(b"echo", b"\xff\xff\xff\xff")],
    "no line end": lambda found: [*found[:-1], found[-1][:-1]],
    "another batch's line": lambda found: [*found[:-1], found[-1].replace(b"batch_req_", b"batch_req_0")],
}


@pytest.mark.parametrize("change_lines", _FILES.values(), ids=_FILES)
async def test_a_result_file_that_is_not_the_batch_s_is_found(
    mill: Mill, change_lines: Callable[[list[bytes]], list[bytes]]
) -> None:
    """A result file that is sound as bytes but holds other lines than the batch's, in another order, is damage."""
    rewrite(mill, change_lines)
    (batch_id,) = query(mill, "SELECT id FROM batch WHERE id IN DONE")[0]
    assert [(f.kind, f.what) for f in await findings(mill) if f.is_damage] == [(Kind.LINES, batch_id)]


@pytest.mark.parametrize("how", ["a line twice", "a line missing", "one line in place of another", "no JSON"])
async def test_a_wrong_result_file_is_found_without_its_input(mill: Mill, how: str) -> None:
    """Also when the input File was deleted, lines that stand twice or are missing are damage."""
    (file_id,) = query(mill, "SELECT input_file_id FROM batch WHERE id IN DONE")[0]
    delete_file(mill, file_id)
    assert [finding for finding in await findings(mill) if finding.is_damage] == []
    rewrite(mill, _FILES[how])
    assert [finding.kind for finding in await findings(mill) if finding.is_damage] == [Kind.LINES]


async def test_a_deleted_result_file_is_no_damage(mill: Mill) -> None:
    """Where the owner has deleted one of two result files, the other is still checked, and sound."""
    hand = mill.hand(mill.echo())
    mixed = b"".join(line(f"m-{n}", "fail 400" if n % 3 == 0 else "hi") for n in range(30))
    batch_id = await mill.batch(mixed)
    await mill.finish(hand, batch_id)
    look = (await mill.look(batch_id)).object
    for file_id in filter(None, (look.output_file_id, look.error_file_id)):
        delete_file(mill, file_id)
        assert [finding for finding in await findings(mill) if finding.is_damage] == []


async def test_a_batch_that_is_cleared_half_way_is_sound(mill: Mill) -> None:
    """Of a final batch whose first Slices the Sweeper has taken, the others are checked, and sound."""
    batch_id = await mill.batch(lines(LINES))
    assert await mill.finish(mill.hand(mill.echo()), batch_id) is Status.COMPLETED

    def clear_one(tx: Transaction) -> bool:
        refs, left = delete_slices(tx, batch_id=batch_id, limit=1)
        for key, count in refs:
            drop_refs(tx, key=key, count=count)
        return left

    assert await mill.database.write(clear_one)
    assert [finding for finding in await findings(mill) if finding.is_damage] == []


async def test_bytes_without_a_row_are_damage_once_they_are_old(mill: Mill) -> None:
    """Bytes that no row knows are a note for an hour, and damage then."""
    put(mill.blobs, "upload_lost")
    age(dict(stored(mill))["upload_lost"], mill.clock.now() - 3500)
    assert [(f.kind, f.what) for f in await findings(mill) if f.what == "upload_lost"] == [(Kind.YOUNG, "upload_lost")]
    age(dict(stored(mill))["upload_lost"], mill.clock.now() - 3700)
    assert [(f.kind, f.what) for f in await findings(mill) if f.is_damage] == [(Kind.ORPHAN, "upload_lost")]


async def test_what_is_unfinished_is_a_note(mill: Mill) -> None:
    """Half-written bytes, rows that are being written or going, and stuck batches are told, and are no damage."""
    writer = mill.blobs.writer("upload_half")
    writer.write(b"x")
    change(
        mill,
        "INSERT INTO blob (key, state, bytes, refs, created_at) VALUES ('upload_w', 'writing', 0, 0, 1),"
        " ('upload_d', 'doomed', 0, 0, 1)",
    )
    change(mill, "UPDATE batch SET crashes = 5 WHERE id IN RUNNING")
    change(mill, "UPDATE batch SET owner = 'worker_gone' WHERE id IN RUNNING")
    found = await findings(mill)
    writer.discard()
    assert {finding.kind for finding in found} == {Kind.UNFINISHED, Kind.STUCK, Kind.LEASE} <= NOTES
    assert {"upload_half", "upload_w", "upload_d"} <= {f.what for f in found if f.kind is Kind.UNFINISHED}
    assert not any(finding.is_damage for finding in found)


async def test_a_broken_database_is_found(mill: Mill) -> None:
    """A page of the database that was overwritten is damage, and ends the audit where rows cannot be read."""
    change(mill, "PRAGMA wal_checkpoint(TRUNCATE)")
    path = mill.folder / "rows.sqlite3"
    with path.open("r+b") as stream:
        for page in range(2, path.stat().st_size // 4096):
            stream.seek(page * 4096)
            stream.write(b"\xa5" * 512)
    assert Kind.DATABASE in {finding.kind for finding in await findings(mill)}


async def test_a_file_that_is_deleted_meanwhile_is_no_damage(mill: Mill) -> None:
    """A File that goes between the look at its row and the look at its bytes is nothing to tell."""
    (file_id, key) = query(mill, "SELECT id, blob_key FROM file WHERE purpose = 'batch_output'")[0]

    def happens(opened: str) -> None:
        if opened == key and query(mill, "SELECT 1 FROM file WHERE id = ?", file_id):
            delete_file(mill, file_id)

    found = await findings(mill, Meanwhile(mill.blobs, happens))
    assert not query(mill, "SELECT 1 FROM file WHERE id = ?", file_id)
    assert [finding for finding in found if finding.is_damage] == []


async def findings(mill: Mill, blobs: Blobs | None = None) -> list[Finding]:
    """Audit the store."""
    audit = Audit(database=mill.database, blobs=blobs or mill.blobs, clock=mill.clock)
    return [finding async for finding in audit.findings()]
