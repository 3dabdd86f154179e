"""The rows of replays: what a POST answered, for the client whose copy of the answer is lost.

A record is written in the transaction that makes what it answers with, so that neither can be without the other. With
an Idempotency-Key there is one record a key; without, one for each thing that was made and not yet used.
"""

from dataclasses import dataclass

from sqlalchemy import ColumnElement, delete, exists, insert, or_, select, update

from batchmill.store.database import Transaction
from batchmill.store.lock import lock_name
from batchmill.store.tables import replay


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A POST that makes something, and what it says of itself."""

    id: str  # of the record that it leaves; sorts by creation
    organisation_id: str
    caller: str  # SHA-256 of its API key
    route: str
    key_digest: str | None  # SHA-256 of its Idempotency-Key, which counts in the organisation and the route
    retries: int  # how many times the client says that it has sent it before
    api_key_id: str | None = None  # of its API key: what it makes belongs to that


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRecord:
    """What is known of an Idempotency-Key; while its call is running, fingerprint and answer are None."""

    id: str
    fingerprint: str | None
    answer: bytes | None


def lock_calls(tx: Transaction, *, call: Call, fingerprint: str | None = None) -> None:
    """Let calls that may be the same pass one by one: a retry waits here for its first try, a few milliseconds."""
    lock_name(tx, f"{call.organisation_id} {call.route} {call.key_digest or fingerprint}")


def find_key(tx: Transaction, *, call: Call, now: int, lease: float) -> KeyRecord | None:
    """Return the record of a call's Idempotency-Key; one past its time, or of a runner that died, is removed instead.

    A lease that ends later than `lease` seconds from now was given before the machine started.
    """
    of_key = _of_key(call)
    dead = replay.c.answer.is_(None) & (replay.c.id != call.id) & ~_leased(tx, lease)
    tx.connection.execute(delete(replay).where(*of_key, or_(replay.c.expires_at <= now, dead)))
    row = tx.connection.execute(select(replay.c.id, replay.c.fingerprint, replay.c.answer).where(*of_key)).first()
    return None if row is None else KeyRecord(id=row.id, fingerprint=row.fingerprint, answer=row.answer)


def insert_running(tx: Transaction, *, call: Call, expires_at: int, lease: float) -> None:
    """Hold an Idempotency-Key that has no record, while its call is running."""
    _insert(tx, call, expires_at=expires_at, lease_until=tx.lease_now + lease)


def renew_running(tx: Transaction, *, call: Call, lease: float) -> None:
    """Hold it for longer; does nothing if another call holds the key by now."""
    mine = update(replay).where(replay.c.id == call.id, replay.c.answer.is_(None))
    tx.connection.execute(mine.values(lease_until=tx.lease_now + lease))


def delete_running(tx: Transaction, *, call: Call) -> None:
    """Give the key back: nothing was made, and no answer but a success is kept."""
    tx.connection.execute(delete(replay).where(replay.c.id == call.id, replay.c.answer.is_(None)))


def insert_answer(
    tx: Transaction, *, call: Call, fingerprint: str, made_id: str, answer: bytes, expires_at: int
) -> None:
    """Keep the answer to a call; what it was while running is replaced."""
    delete_running(tx, call=call)
    _insert(tx, call, fingerprint=fingerprint, made_id=made_id, answer=answer, expires_at=expires_at)


def take_answer(tx: Transaction, *, call: Call, fingerprint: str, now: int, expires_at: int) -> bytes | None:
    """Return the answer that a retry without a key has lost, and mark it as served to this try.

    Of the caller's live records of the fingerprint that were last served to an earlier try, it is the one whose try
    came latest, and of those the newest: so that each try finds the record of the try before it, and identical calls
    whose answers are all lost do not take each other's.
    """
    earlier = (
        select(replay.c.id, replay.c.served, replay.c.answer)
        .where(replay.c.organisation_id == call.organisation_id, replay.c.route == call.route)
        .where(replay.c.caller == call.caller, replay.c.key_digest.is_(None), replay.c.fingerprint == fingerprint)
        .where(replay.c.served < call.retries, replay.c.expires_at > now)
        .order_by(replay.c.served.desc(), replay.c.id.desc())
        .limit(1)
    )
    while (row := tx.connection.execute(earlier).first()) is not None:
        taken = update(replay).where(replay.c.id == row.id, replay.c.served == row.served)
        if tx.connection.execute(taken.values(served=call.retries, expires_at=expires_at)).rowcount == 1:
            return bytes(row.answer)
    return None


def may_be_lost(tx: Transaction, *, caller: str, made_id: str) -> bool:
    """Say whether the answer that told the caller of this File or batch may still be on its way, or lost."""
    return bool(tx.connection.execute(select(exists().where(*_made(caller, made_id)))).scalar())


def note_arrival(tx: Transaction, *, caller: str, made_id: str) -> None:
    """Forget the answer that told the caller of this File or batch: it uses the id, so it is never to be replayed."""
    tx.connection.execute(delete(replay).where(*_made(caller, made_id)))


def has_old_replays(tx: Transaction, *, now: int) -> bool:
    """Say whether any record is past its time."""
    return bool(tx.connection.execute(select(exists().where(replay.c.expires_at <= now))).scalar())


def delete_old_replays(tx: Transaction, *, now: int, limit: int) -> int:
    """Remove records that are past their time; return how many."""
    old = select(replay.c.id).where(replay.c.expires_at <= now).limit(limit)
    return tx.connection.execute(delete(replay).where(replay.c.id.in_(old))).rowcount


def _of_key(call: Call) -> tuple[ColumnElement[bool], ...]:
    return (
        replay.c.organisation_id == call.organisation_id,
        replay.c.route == call.route,
        replay.c.key_digest == call.key_digest,
    )


def _made(caller: str, made_id: str) -> tuple[ColumnElement[bool], ...]:
    return replay.c.made_id == made_id, replay.c.caller == caller, replay.c.key_digest.is_(None)


def _leased(tx: Transaction, lease: float) -> ColumnElement[bool]:
    return replay.c.lease_until.between(tx.lease_now, tx.lease_now + lease)


def _insert(tx: Transaction, call: Call, **facts: object) -> None:
    tx.connection.execute(
        insert(replay).values(
            id=call.id,
            organisation_id=call.organisation_id,
            caller=call.caller,
            route=call.route,
            key_digest=call.key_digest,
            served=call.retries,
            **facts,
        )
    )
