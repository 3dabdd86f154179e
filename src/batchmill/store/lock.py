"""One at a time: transactions that name the same thing."""

from sqlalchemy import func, select

from batchmill.store.database import Transaction


def lock_name(tx: Transaction, name: str) -> None:
    """Let transactions that call this with the same name pass one by one, until each has ended.

    SQLite writes one by one anyway. On PostgreSQL the second one waits here for the commit of the first: neither would
    see the other's rows else. It is a lock of the transaction, so it works behind any pooler.
    """
    if tx.connection.dialect.name == "postgresql":
        tx.connection.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(name, 0))))
