"""The rows as commands get at them: opened, brought up to date, and one sentence where that cannot be done."""

import asyncio

from sqlalchemy.exc import SQLAlchemyError

from batchmill.assemble.storage import Storage, build_clock, rows_path
from batchmill.cli import data_directory
from batchmill.cli.exit import Exit, Stop
from batchmill.settings import BadSettings, Settings
from batchmill.store.database import DatabaseAway, Statements, T, Transaction
from batchmill.store.migrate import NewerDatabase, migrate
from batchmill.store.server import RefusedDatabase, UnsafeDatabase, check_server


def open_storage(settings: Settings) -> Storage:
    """Return the rows and the bytes that the settings name.

    Raises:
        Stop: what they need is not installed.
    """
    try:
        return Storage(settings=settings, clock=build_clock())
    except BadSettings as fault:
        raise Stop(str(fault), Exit.USAGE) from fault


def open_store(settings: Settings) -> Storage:
    """Return the rows and the bytes of something that is there; nothing is made.

    Raises:
        Stop: there is no such data directory.
    """
    _require(settings)
    return open_storage(settings)


def _require(settings: Settings) -> None:
    if settings.is_embedded and not rows_path(settings).is_file():
        raise Stop(f"There is no data directory of Batchmill at {settings.data}.", Exit.USAGE)


def check_bytes(settings: Settings) -> None:
    """See whether a bucket can be used here, before processes are started that need it.

    Raises:
        Stop: what it needs is not installed, or its settings make no sense.
    """
    if settings.blobs is not None:
        storage = open_storage(settings)
        try:
            _ = storage.blobs
        except BadSettings as fault:
            raise Stop(str(fault), Exit.USAGE) from fault


def in_rows(settings: Settings, statements: Statements[T], *, there: bool = False) -> T:
    """Run statements on the rows, which are brought up to date where they have to be: one transaction.

    They are made, too, unless what is spoken of must be `there` already: a wrong --data is told then.

    Raises:
        Stop: the database cannot be used, is a newer Batchmill's, or is not there.
    """
    if there:
        _require(settings)
    data_directory.prepare(settings.data)

    async def run() -> T:
        database = open_storage(settings).database

        def all_statements(tx: Transaction) -> T:
            check_server(tx, allow_unsafe=settings.allow_unsafe_database)
            migrate(tx)
            return statements(tx)

        try:
            return await database.write(all_statements)
        finally:
            await database.close()

    where = name_of(settings)
    try:
        return asyncio.run(run())
    except NewerDatabase as fault:
        raise Stop(f"{where} was used by a newer Batchmill: {fault}.", Exit.DATA_UNUSABLE) from fault
    except UnsafeDatabase as fault:
        hint = "Switch them on, or take the risk with allow_unsafe_database = true"
        raise Stop(
            f"{where} is refused: {fault}. {hint} (BATCHMILL_ALLOW_UNSAFE_DATABASE=1).", Exit.DATA_UNUSABLE
        ) from fault
    except RefusedDatabase as fault:
        raise Stop(f"{where} is refused: {fault}.", Exit.DATA_UNUSABLE) from fault
    except (SQLAlchemyError, DatabaseAway, OSError) as fault:
        raise Stop(f"{where} cannot be used: {fault}.", Exit.DATA_UNUSABLE) from fault


def name_of(settings: Settings) -> str:
    """Return what a sentence calls the place of the rows; a server's URL may hold a password."""
    return f"The data directory {settings.data}" if settings.is_embedded else "The database"
