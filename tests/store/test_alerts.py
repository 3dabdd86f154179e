"""What an operator is woken for, as the rows have it."""

from sqlalchemy import update

from batchmill.store.alerts import Alerts, read_alerts
from batchmill.store.batch import set_waiting
from batchmill.store.database import Database, Transaction
from batchmill.store.steer import pause
from batchmill.store.tables import batch
from batchmill.store.worker import insert_worker
from store.rows import LAPSED, LEASE, NOW, add_organisations, add_running, get_batch


async def test_nothing_is_wrong_with_an_empty_store(database: Database) -> None:
    """No batch, no worker, no margin."""
    nothing = Alerts(at_risk=0, margin=None, waiting=0, oldest_wait=0, paused=0, workers=0, away=0)
    assert await database.read(lambda tx: read_alerts(tx, now=NOW)) == nothing


async def test_deadlines_waits_pauses_and_workers_are_counted(database: Database) -> None:
    """Too slow a batch is at risk; a paused one neither waits nor is forecast; a worker that fell silent is away."""

    def statements(tx: Transaction) -> Alerts:
        add_organisations(tx)
        for name, lines in (("batch_slow", 10), ("batch_quick", 1_000), ("batch_waits", 10), ("batch_paused", 10)):
            add_running(tx, name, slices=10, lines=100)  # a thousand lines in an hour
            rate = {"recent_lines": lines, "recent_seconds": 100.0, "counted_at": tx.lease_now}
            tx.connection.execute(update(batch).where(batch.c.id == name).values(rate))
        set_waiting(tx, batch_id="batch_waits", waiting="no backend serves m", now=NOW - 40)
        pause(tx, get_batch(tx, "batch_paused"), now=NOW - 90)
        insert_worker(tx, worker_id="worker_1", lease=LEASE, now=NOW)
        insert_worker(tx, worker_id="worker_2", lease=LAPSED, now=NOW)
        return read_alerts(tx, now=NOW)

    told = await database.write(statements)
    assert told == Alerts(at_risk=1, margin=3600 - 10_000, waiting=1, oldest_wait=40, paused=1, workers=1, away=1)
