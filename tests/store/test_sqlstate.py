"""What a fault of PostgreSQL means: the table, fault by fault."""

import asyncpg
import pytest

from batchmill.store.database import DatabaseAway, DiskFull
from batchmill.store.sqlstate import Again, Collision, Standby, meaning


@pytest.mark.parametrize(
    ("fault", "means"),
    [
        (asyncpg.ConnectionDoesNotExistError("gone"), Again),
        (asyncpg.ProtocolViolationError("server conn crashed?"), Again),  # pgbouncer's
        (asyncpg.SerializationError("x"), Again),
        (asyncpg.DeadlockDetectedError("x"), Again),
        (asyncpg.TooManyConnectionsError("x"), Again),
        (asyncpg.LockNotAvailableError("x"), Again),
        (asyncpg.QueryCanceledError("x"), Again),
        (asyncpg.AdminShutdownError("x"), Again),
        (asyncpg.CrashShutdownError("x"), Again),
        (asyncpg.CannotConnectNowError("x"), Again),
        (asyncpg.IdleInTransactionSessionTimeoutError("x"), Again),
        (asyncpg.UniqueViolationError("x"), Collision),
        (asyncpg.ReadOnlySQLTransactionError("x"), Standby),
        (asyncpg.InvalidPasswordError("x"), DatabaseAway),
        (asyncpg.InvalidCatalogNameError("x"), DatabaseAway),
        (asyncpg.UndefinedTableError("x"), DatabaseAway),
        (asyncpg.UndefinedColumnError("x"), DatabaseAway),
        (asyncpg.DiskFullError("x"), DiskFull),
        (asyncpg.ForeignKeyViolationError("x"), asyncpg.ForeignKeyViolationError),
        (asyncpg.DivisionByZeroError("x"), asyncpg.DivisionByZeroError),
        (asyncpg.InterfaceError("x"), asyncpg.InterfaceError),
        (ConnectionRefusedError(111, "x"), ConnectionRefusedError),
    ],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)
def test_a_fault_means_what_the_table_says(fault: Exception, means: type[Exception]) -> None:
    """What passes is tried again, what shuts everybody out is said, what is the statement's own is raised as it is."""
    assert type(meaning(fault)) is means


@pytest.mark.parametrize("fault", [ConnectionRefusedError(111, "x"), TimeoutError(), asyncpg.InterfaceError("x")])
def test_while_there_is_no_connection_all_faults_pass(fault: Exception) -> None:
    """A fault of the way to the server is no statement's; its name stands for one that says nothing."""
    means = meaning(fault, connecting=True)
    assert type(means) is Again
    assert str(means)


def test_a_read_that_writes_is_a_bug() -> None:
    """A read-only transaction that is told to write is no standby's."""
    fault = asyncpg.ReadOnlySQLTransactionError("x")
    assert meaning(fault, writes=False) is fault
