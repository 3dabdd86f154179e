"""Brings a database up to this version's tables, in one transaction, one process at a time.

Versions n and n+1 run side by side: a migration only adds (tables, and columns that are null or have a default), and
version n goes on with what n+1 has added. A revision that does more begins a new era: its id is the last era's with a
letter more in front (`a0009` after `0008`), and versions of the era before refuse to start on it.
"""

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
    """The tables are of a later era than this Batchmill: it would misread them."""


def migrate(tx: Transaction) -> None:
    """Upgrade to the newest revision; does nothing where it, or a later one of the same era, is reached already.

    SQLite's `BEGIN IMMEDIATE`, on PostgreSQL an advisory lock of the transaction, keeps a second process waiting. The
    tables may be large, and who uses them finishes first: a migration takes as long as it takes.

    Raises:
        NewerDatabase: its revision is of a later era.
    """
    if tx.connection.dialect.name == "postgresql":
        tx.take_time()
        for limit in ("lock_timeout", "statement_timeout", "idle_in_transaction_session_timeout"):
            tx.connection.execute(text(f"SET LOCAL {limit} = 0"))
        tx.connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
    script = ScriptDirectory.from_config(_config())
    if _is_later(_current(tx), script):
        return

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
    """Say whether the tables are this version's, or a later one's of the same era.

    Raises:
        NewerDatabase: its revision is of a later era.
    """
    script = ScriptDirectory.from_config(_config())
    current = _current(tx)
    return current == script.get_current_head() or _is_later(current, script)


def _current(tx: Transaction) -> str | None:
    return MigrationContext.configure(tx.connection).get_current_revision()


def _is_later(revision: str | None, script: ScriptDirectory) -> bool:
    """Say whether a database's revision is a later one than all that are known here."""
    if revision is None or revision in {known.revision for known in script.walk_revisions()}:
        return False
    if _era(revision) != _era(str(script.get_current_head())):
        raise NewerDatabase(f"the database is at revision {revision}, which this Batchmill cannot work with")
    return True


def _era(revision: str) -> str:
    return revision.rstrip("0123456789")


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.set_main_option("path_separator", "os")
    return config
