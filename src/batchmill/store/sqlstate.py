"""What a fault of PostgreSQL, or of the way to it, means for a transaction: a table by SQLSTATE."""

import asyncpg
from sqlalchemy.exc import DBAPIError

from batchmill.store.database import DatabaseAway, DiskFull

CLIENT_FAULTS = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError)  # a TimeoutError is an OSError

# By the beginning of the SQLSTATE. These pass by themselves:
_PASSING = (
    "08",  # the connection
    "25P03",  # idle in a transaction for too long
    "40001",  # serialization failure
    "40P01",  # deadlock
    "53200",  # out of memory
    "53300",  # too many connections
    "55P03",  # lock_timeout
    "57014",  # statement_timeout
    "57P",  # the server is being shut down, has crashed, or takes no connections yet
)
# These do not, and are no statement's fault: nobody is let in, or the tables are not this version's.
_SHUT = ("28", "3D000", "42P01", "42703")
_DISK_FULL = "53100"
_COLLISION = "23505"  # two that looked for a row and then inserted it
_READ_ONLY = "25006"  # of a write: the server has become one that only follows another


class Again(Exception):  # noqa: N818 - it says what to do
    """Nothing of the transaction is written, or that is not known yet: the same once more."""


class Collision(Again):
    """Another transaction was faster: run again, the statements see its row. If they do not, it was no race."""


class Standby(Again):
    """The server takes no writes any more: another connection may lead to one that does."""


def meaning(fault: Exception, *, connecting: bool = False, writes: bool = True) -> Exception:
    """Return what to raise for a fault: `Again`, DatabaseAway, DiskFull, or the fault itself, which is a bug's.

    Args:
        fault: SQLAlchemy's, asyncpg's or the socket's.
        connecting: there is no connection yet, so that whatever it is, it is no statement's fault.
        writes: the transaction is one that may.
    """
    cause = fault.orig if isinstance(fault, DBAPIError) and fault.orig is not None else fault
    state, why = str(getattr(cause, "sqlstate", None) or ""), _reason(cause)
    if state.startswith(_SHUT):
        return DatabaseAway(why)
    if state == _DISK_FULL:
        return DiskFull()
    if state == _COLLISION:
        return Collision(why)
    if state == _READ_ONLY and writes:
        return Standby(why)
    lost = isinstance(fault, DBAPIError) and fault.connection_invalidated
    stale = isinstance(cause.__cause__, asyncpg.InvalidCachedStatementError)
    return Again(why) if connecting or lost or stale or state.startswith(_PASSING) else fault


def _reason(cause: BaseException) -> str:
    """Return a fault in one line: what the server or the kernel said, which holds no password."""
    told = str(cause.args[0]) if cause.args and not isinstance(cause, OSError) else str(cause)
    return told.splitlines()[0].strip() if told.strip() else type(cause).__name__
