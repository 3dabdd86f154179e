"""How the rows of batches are steered: pause, window and priority, beside a status that stays as it is.

Each statement names the status that it expects, as one that moves a batch does: none comes after the end of sending.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, case, select, update

from batchmill.spec.states import Status
from batchmill.spec.steer import paused, says_paused
from batchmill.store.batch import Batch, is_stuck
from batchmill.store.database import Transaction
from batchmill.store.tables import batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """What a worker that holds Slices of a batch has to know of it again and again; `expires_at` in Unix seconds."""

    status: Status
    paused: bool
    expires_at: int
    priority: int


def courses_of(tx: Transaction, *, batch_ids: Sequence[str]) -> Mapping[str, Course]:
    """Return the course of each of these batches."""
    query = select(batch.c.id, batch.c.status, batch.c.paused_at, batch.c.expires_at, batch.c.priority)
    return {
        row.id: Course(
            status=Status(row.status),
            paused=row.paused_at is not None,
            expires_at=row.expires_at,
            priority=row.priority,
        )
        for row in tx.connection.execute(query.where(batch.c.id.in_(batch_ids)))
    }


def pause(tx: Transaction, found: Batch, *, now: int) -> bool:
    """Let no line of a batch be sent from now on, and say so; False if someone moved or paused it: read again.

    What is said of a batch that is stuck stays. The time until it goes on counts in no rate.
    """
    expires_at = _expires_at(found)
    stuck = is_stuck(tx)
    values = {
        "paused_at": now,
        "waiting": case((stuck, batch.c.waiting), else_=paused(expires_at)),
        "waiting_since": case((stuck, batch.c.waiting_since), else_=now),
        "counted_at": None,
    }
    return _steer(tx, found, values, batch.c.paused_at.is_(None), batch.c.expires_at == expires_at)


def resume(tx: Transaction, found: Batch) -> bool:
    """Let a batch go on; False if someone moved or resumed it: read again."""
    silent = {"waiting": None, "waiting_since": None} if says_paused(found.waiting) else {}
    tx.ring()
    return _steer(tx, found, {"paused_at": None, "counted_at": None, **silent}, batch.c.paused_at.is_not(None))


def set_window(tx: Transaction, found: Batch, *, window: str, expires_at: int) -> bool:
    """Let a batch have another window, which ends at `expires_at`; False if someone moved or paused it: read again."""
    said = {"waiting": paused(expires_at)} if says_paused(found.waiting) else {}
    as_it_is = batch.c.paused_at.is_(None) if found.object.paused_at is None else batch.c.paused_at.is_not(None)
    tx.ring()
    return _steer(tx, found, {"completion_window": window, "expires_at": expires_at, **said}, as_it_is)


def set_priority(tx: Transaction, found: Batch, *, priority: int) -> bool:
    """Let a batch come before those of its organisation with a lower number; False if someone moved it: read again."""
    return _steer(tx, found, {"priority": priority})


def _steer(tx: Transaction, found: Batch, values: Mapping[str, object], *conditions: ColumnElement[bool]) -> bool:
    expected = (batch.c.id == found.id, batch.c.status == found.object.status.value)
    return tx.connection.execute(update(batch).where(*expected, *conditions).values(values)).rowcount == 1


def _expires_at(found: Batch) -> int:
    if found.object.expires_at is None:
        raise ValueError(f"{found.id} has no end of its window")
    return found.object.expires_at
