"""A token bucket a row: how many calls an organisation may make now, counted for all API processes together."""

from sqlalchemy import case, func
from sqlalchemy.dialects.postgresql import insert

from batchmill.store.database import Transaction
from batchmill.store.tables import rate


def take_token(tx: Transaction, *, organisation_id: str, per_minute: int) -> tuple[bool, float]:
    """Take a token out of a bucket that holds `per_minute` (at least 1), if there is one; return that, and the rest.

    One statement on the database's clock, and one row that calls of the same organisation wait in line for. PostgreSQL
    only: on SQLite one process answers, and counts in its memory. Its commit is not waited for: a server that crashes
    forgets less than a second of calls, and nobody was promised a refusal.
    """
    limit = float(per_minute)
    fresh = insert(rate).values(
        organisation_id=organisation_id, tokens=limit - 1, counted_at=tx.lease_now, granted=True
    )
    now = func.greatest(rate.c.counted_at, fresh.excluded.counted_at)  # who waited for the row looked before others did
    filled = func.least(limit, rate.c.tokens + (now - rate.c.counted_at) * (limit / 60))
    granted = filled >= 1
    left = case((granted, filled - 1), else_=filled)
    unhurried = func.set_config("synchronous_commit", "off", True)  # noqa: FBT003 - SQL's own: for this transaction
    taken = fresh.on_conflict_do_update(
        index_elements=[rate.c.organisation_id], set_={"tokens": left, "counted_at": now, "granted": granted}
    ).returning(rate.c.granted, rate.c.tokens, unhurried)
    row = tx.connection.execute(taken).one()
    return row.granted, row.tokens
