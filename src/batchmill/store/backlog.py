"""How much is left to do and how much of it does not move, over all organisations: what operators watch."""

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import func, select

from batchmill.spec.states import Status
from batchmill.store.batch import is_stuck
from batchmill.store.database import Transaction
from batchmill.store.tables import batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Backlog:
    """Batches by status, the stuck ones among them, and the lines of running batches that have no Result yet."""

    batches: Mapping[Status, int]
    stuck: int
    open_lines: int


def read_backlog(tx: Transaction) -> Backlog:
    """Return what is left to do."""
    stuck = select(func.count()).select_from(batch).where(is_stuck(tx))
    left = func.coalesce(func.sum(batch.c.total - batch.c.completed - batch.c.failed), 0)
    running = select(left).where(batch.c.status == Status.IN_PROGRESS.value)
    return Backlog(
        batches=dict.fromkeys(Status, 0) | dict(count_statuses(tx)),
        stuck=int(tx.connection.execute(stuck).scalar_one()),
        open_lines=int(tx.connection.execute(running).scalar_one()),
    )


def count_statuses(tx: Transaction) -> Mapping[Status, int]:
    """Return how many batches are in each status."""
    query = select(batch.c.status, func.count()).group_by(batch.c.status)
    return {Status(status): count for status, count in tx.connection.execute(query)}
