"""Workers and the leases that they hold."""

import pytest
from sqlalchemy import select

from batchmill.spec.states import Status
from batchmill.store.batch import claim_batch
from batchmill.store.database import Database, SqliteDatabase, Transaction
from batchmill.store.slice import claim_slices, list_slices, record_done
from batchmill.store.tables import batch
from batchmill.store.worker import (
    delete_worker,
    has_live_worker,
    insert_worker,
    release_leases,
    renew_leases,
    void_leases,
)
from fakeclock import FakeClock
from store.rows import LAPSED, LEASE, NOW, a_batch, add_batch, add_organisations, add_running


@pytest.fixture(autouse=True)
async def _batches(database: Database) -> None:
    def statements(tx: Transaction) -> None:
        add_organisations(tx)
        add_running(tx, "batch_1", slices=1)
        add_batch(tx, a_batch("batch_2"))

    await database.write(statements)


def take_all(tx: Transaction, worker_id: str, lease: float = LEASE) -> int:
    """Claim all that is free, one Slice and one batch's lease; return how much that was."""
    held = claim_slices(tx, batch_id="batch_1", count=1, models=["m"], worker_id=worker_id, lease=lease)
    batch = claim_batch(tx, worker_id=worker_id, statuses=[Status.VALIDATING], lease=lease)
    return len(held) + (batch is not None)


def start(tx: Transaction, worker_id: str, lease: float = LEASE) -> None:
    """Announce a worker."""
    insert_worker(tx, worker_id=worker_id, lease=lease, now=NOW)


async def test_a_renewal_keeps_all_that_a_worker_holds(database: Database) -> None:
    """One renewal makes the worker's own lease and those of its Slices and batches last."""

    def statements(tx: Transaction) -> list[object]:
        start(tx, "w1", LAPSED)
        take_all(tx, "w1", LAPSED)
        dead = has_live_worker(tx)
        known = renew_leases(tx, worker_id="w1", lease=LEASE)
        return [dead, known, has_live_worker(tx), take_all(tx, "w2")]

    assert await database.write(statements) == [False, True, True, 0]


async def test_a_renewal_does_not_touch_what_others_hold(database: Database) -> None:
    """A lapsed lease of another worker stays lapsed, and an unknown worker is told so."""

    def statements(tx: Transaction) -> list[object]:
        take_all(tx, "w1", LAPSED)
        return [renew_leases(tx, worker_id="w2", lease=LEASE), take_all(tx, "w2")]

    assert await database.write(statements) == [False, 2]


async def test_voiding_ends_every_lease_but_ones_own(database: Database) -> None:
    """A worker that is alone takes over at once, and what the dead one writes fails at the fence."""

    def statements(tx: Transaction) -> list[object]:
        start(tx, "w1")
        take_all(tx, "w1")
        start(tx, "w2")
        assert void_leases(tx, worker_id="w2") == 2
        assert sorted(tx.connection.execute(select(batch.c.crashes)).scalars()) == [0, 1]
        known = renew_leases(tx, worker_id="w1", lease=LEASE)
        taken = take_all(tx, "w2")
        void_leases(tx, worker_id="w2")
        late = record_done(tx, batch_id="batch_1", ordinal=0, epoch=1, done=b"\xff", closed=True)
        return [known, taken, late, take_all(tx, "w3")]

    assert await database.write(statements) == [False, 2, False, 0]


async def test_a_worker_that_ends_gives_all_back(database: Database) -> None:
    """Released leases are free at once, the epochs stay, and the worker is forgotten."""

    def statements(tx: Transaction) -> list[object]:
        start(tx, "w1")
        take_all(tx, "w1")
        release_leases(tx, worker_id="w1")
        delete_worker(tx, worker_id="w1")
        return [has_live_worker(tx), list_slices(tx, batch_id="batch_1")[0].epoch, take_all(tx, "w2")]

    assert await database.write(statements) == [False, 1, 2]


async def test_a_lease_lapses_on_the_boot_clock(database: Database, clock: FakeClock) -> None:
    """On SQLite a lease holds through its last moment of the boot clock and not beyond; wall time means nothing."""
    if not isinstance(database, SqliteDatabase):  # PostgreSQL's own clock cannot be moved
        return
    await database.write(lambda tx: take_all(tx, "w1"))
    clock.time += 1_000_000
    assert await database.write(lambda tx: take_all(tx, "w2")) == 0
    clock.uptime += LEASE
    assert await database.write(lambda tx: take_all(tx, "w2")) == 0
    clock.uptime += 0.001
    assert await database.write(lambda tx: take_all(tx, "w2")) == 2
