"""What stands before a batch that is not there yet."""

import pytest
from sqlalchemy import update

from batchmill.schedule.order import BYTES_PER_TOKEN
from batchmill.spec.states import Status
from batchmill.store.database import Database, SqliteDatabase, Transaction
from batchmill.store.outlook import Queue, read_queue
from batchmill.store.tables import batch, blob
from store.rows import THEIRS, a_batch, add_batch, add_organisations, add_running
from store.test_slice import plan_of


@pytest.fixture(autouse=True)
async def _organisations(database: Database) -> None:
    await database.write(add_organisations)


def change(tx: Transaction, batch_id: str, **values: object) -> None:
    """Change a batch's row."""
    tx.connection.execute(update(batch).where(batch.c.id == batch_id).values(**values))


async def test_where_nothing_is_there_nothing_is_known(database: Database) -> None:
    """Without a batch there is no queue and no rate."""
    found = await database.read(lambda tx: read_queue(tx, models=["m"]))
    assert found == Queue(batches=0, tokens=0.0, running=[], last=None)


async def test_batches_that_want_the_same_models_are_ahead(database: Database) -> None:
    """Whosever they are: by their open Slices, or by their bytes before they are checked; final ones are not."""

    def statements(tx: Transaction) -> Queue:
        for name, model, owner in (("batch_1", "m", THEIRS), ("batch_2", "n", THEIRS), ("batch_3", None, THEIRS)):
            add_running(tx, name, slices=3, organisation_id=owner)
            change(tx, name, model=model, slice_tokens=100)
        add_batch(tx, a_batch("batch_4"))
        tx.connection.execute(update(blob).where(blob.c.key == "batch_4-input").values(bytes=50 * BYTES_PER_TOKEN))
        add_batch(tx, a_batch("batch_5"), status=Status.COMPLETED)
        change(tx, "batch_5", model="m")
        add_running(tx, "batch_6")
        change(tx, "batch_6", model="m", paused_at=1)
        return read_queue(tx, models=["m"])

    found = await database.write(statements)
    assert (found.batches, found.tokens) == (3, 300 + 300 + 50)


async def test_rates_are_those_of_late(database: Database) -> None:
    """Each batch in progress with a commit behind it has its own; the last completed one of the model is the other."""

    def statements(tx: Transaction) -> Queue:
        sums = {"recent_lines": 10.0, "recent_seconds": 5.0}
        for name, tokens in (("batch_1", 1.0), ("batch_2", 2.0)):
            add_running(tx, name)
            change(
                tx,
                name,
                model="m",
                recent_tokens=tokens,
                counted_at=tx.lease_now if name == "batch_1" else None,
                **sums,
            )
        for name, model, tokens in (
            ("batch_3", "m", 3.0),
            ("batch_4", "m", 4.0),
            ("batch_5", "n", 5.0),
            ("batch_6", "m", 0.0),
        ):
            add_batch(tx, a_batch(name), status=Status.COMPLETED)
            change(tx, name, model=model, recent_tokens=tokens, **sums)
        return read_queue(tx, models=["m"])

    found = await database.write(statements)
    assert [(each.tokens, each.lines, each.seconds) for each in found.running] == [(1.0, 10.0, 5.0)]
    assert found.running[0].age is not None
    assert found.last is not None
    assert found.last.tokens == 4.0


async def test_what_is_looked_at_is_bounded(database: Database) -> None:
    """On SQLite no statement sees more than the batches of one status, and of completed ones only so many."""
    if not isinstance(database, SqliteDatabase):  # PostgreSQL chooses by statistics
        return
    plan = await database.write(lambda tx: plan_of(tx, lambda tx: read_queue(tx, models=["m"])))
    assert not any(step.startswith("SCAN batch") for step in plan), plan
    last = plan[-4:]
    assert last[1] == "SEARCH batch USING INDEX ix_batch_status (status=?)", plan
    assert last[2:] == ["SCAN anon_1", "USE TEMP B-TREE FOR ORDER BY"], plan  # nothing is sorted before it is cut
