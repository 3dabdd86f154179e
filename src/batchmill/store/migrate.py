"""Brings a database up to this version's tables, in one transaction, one process at a time."""

from pathlib import Path

from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.runtime.environment import EnvironmentContext
from alembic.script import ScriptDirectory
from sqlalchemy import text

from batchmill.store.database import Transaction
from batchmill.store.tables import metadata

_LOCK = 0x6261746368  # "batch": the key of PostgreSQL's advisory lock for migrations


class NewerDatabase(Exception):  # noqa: N818 - it states what is so
    """The database was written by a newer Batchmill than this one."""


def migrate(tx: Transaction) -> None:
    """Upgrade to the newest revision; does nothing where it is reached already.

    SQLite's `BEGIN IMMEDIATE`, on PostgreSQL an advisory lock of the transaction, keeps a second process waiting.

    Raises:
        NewerDatabase: its revision is unknown here.
    """
    if tx.connection.dialect.name == "postgresql":
        tx.connection.execute(text("SET LOCAL lock_timeout = 0"))  # the other process may need its time
        tx.connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
        tx.connection.execute(text("SET LOCAL lock_timeout TO DEFAULT"))
    script = ScriptDirectory.from_config(_config())
    current = MigrationContext.configure(tx.connection).get_current_revision()
    if current is not None and current not in {revision.revision for revision in script.walk_revisions()}:
        raise NewerDatabase(f"the database is at revision {current}, which this Batchmill does not know")

    with EnvironmentContext(_config(), script) as environment:
        environment.configure(
            connection=tx.connection,
            target_metadata=metadata,
            fn=lambda revision, _context: script._upgrade_revs("head", revision),  # noqa: SLF001 - as alembic.command does
            transactional_ddl=True,
        )
        environment.run_migrations()


def revision(tx: Transaction) -> str:
    """Return the revision that the tables are at; "none" before the first."""
    return MigrationContext.configure(tx.connection).get_current_revision() or "none"


def is_current(tx: Transaction) -> bool:
    """Say whether the tables are this version's."""
    script = ScriptDirectory.from_config(_config())
    return MigrationContext.configure(tx.connection).get_current_revision() == script.get_current_head()


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.set_main_option("path_separator", "os")
    return config
