"""The rows of workers: a worker is alive while its lease is."""

from sqlalchemy import delete, exists, insert, select, update

from batchmill.store.database import Transaction
from batchmill.store.slice import lock_slices, void_slices
from batchmill.store.tables import batch, delivery, lane, slice_, transaction_name, worker

_FORGOTTEN_SECONDS = 3600  # after its lease, the row of a worker that died tells nobody anything


def insert_worker(tx: Transaction, *, worker_id: str, lease: float, now: int, place: str | None = None) -> None:
    """Announce a worker; its lease lasts `lease` seconds from now on. `place` tells people where it runs."""
    tx.connection.execute(
        insert(worker).values(id=worker_id, started_at=now, lease_until=tx.lease_now + lease, place=place)
    )


def renew_leases(tx: Transaction, *, worker_id: str, lease: float) -> bool:
    """Renew all that a worker holds; False if the worker itself is no longer known."""
    until = tx.lease_now + lease
    lock_slices(tx, slice_.c.owner == worker_id)
    for table in (slice_, batch):
        tx.connection.execute(update(table).where(table.c.owner == worker_id).values(lease_until=until))
    renewed = tx.connection.execute(update(worker).where(worker.c.id == worker_id).values(lease_until=until))
    return renewed.rowcount == 1


def void_leases(tx: Transaction, *, worker_id: str) -> int:
    """End every lease but this worker's, as crashes of their owners; return how many Slices and batches were held.

    For a worker that knows that it is alone: the holder of an embedded data directory's lock. The epochs stay, so that
    whatever a dead worker left behind still fails at the fence.
    """
    held = update(batch).where(batch.c.owner.is_not(None), batch.c.owner != worker_id)
    batches = tx.connection.execute(held.values(owner=None, lease_until=None, crashes=batch.c.crashes + 1)).rowcount
    # A new boot's lease clock begins anew: what waits for a moment of the old one would wait for ever.
    tx.connection.execute(update(batch).where(batch.c.retry_at.is_not(None)).values(retry_at=None))
    tx.connection.execute(update(delivery).where(delivery.c.lease_until.is_not(None)).values(lease_until=None))
    tx.connection.execute(delete(worker).where(worker.c.id != worker_id))
    tx.connection.execute(delete(lane).where(lane.c.worker_id != worker_id))
    return batches + void_slices(tx, worker_id=worker_id)


def release_leases(tx: Transaction, *, worker_id: str) -> None:
    """Give back all that a worker holds."""
    tx.ring()
    lock_slices(tx, slice_.c.owner == worker_id)
    for table in (slice_, batch):
        tx.connection.execute(update(table).where(table.c.owner == worker_id).values(owner=None, lease_until=None))


def delete_worker(tx: Transaction, *, worker_id: str) -> None:
    """Forget a worker that has ended in good order."""
    tx.connection.execute(delete(worker).where(worker.c.id == worker_id))
    tx.connection.execute(delete(lane).where(lane.c.worker_id == worker_id))


def forget_dead(tx: Transaction) -> None:
    """Remove the rows of workers that died long ago and of which nothing is left to take over."""
    dead = worker.c.lease_until < tx.lease_now - _FORGOTTEN_SECONDS
    held = [~exists().where(table.c.owner == worker.c.id) for table in (batch, slice_)]
    tx.connection.execute(delete(worker).where(dead, *held))


def forget_names(tx: Transaction) -> None:
    """Remove the names of transactions whose outcome nobody can be asking for any more."""
    old = transaction_name.c.begun_at < tx.lease_now - _FORGOTTEN_SECONDS
    tx.connection.execute(delete(transaction_name).where(old))


def has_elder(tx: Transaction, *, worker_id: str) -> bool:
    """Say whether an older worker than this one lives: what one is enough for is done by the oldest.

    Who cannot renew its own lease, as on a full disk, is not asked about that.
    """
    elder = exists().where(worker.c.id < worker_id, worker.c.lease_until > tx.lease_now)
    return bool(tx.connection.execute(select(elder)).scalar())


def has_live_worker(tx: Transaction) -> bool:
    """Say whether any worker's lease holds."""
    return bool(tx.connection.execute(select(exists().where(worker.c.lease_until > tx.lease_now))).scalar())
