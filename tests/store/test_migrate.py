"""The tables as the migrations make them."""

import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import CheckConstraint, inspect, text

from batchmill.spec.states import Status
from batchmill.store import migrations
from batchmill.store.database import Database, Transaction
from batchmill.store.migrate import NewerDatabase, is_current, migrate
from batchmill.store.slice import claim_slices
from batchmill.store.tables import metadata
from store.rows import LEASE, add_organisations, add_running, get_batch

VERSIONS = Path(migrations.__file__).parent / "versions"


def differences(tx: Transaction) -> object:
    """Return what alembic would change to make the database equal to `tables.py`."""
    options = {"compare_type": True, "compare_server_default": True}
    return compare_metadata(MigrationContext.configure(tx.connection, opts=options), metadata)


def tables(tx: Transaction) -> set[str]:
    """Return the names of all tables."""
    return set(inspect(tx.connection).get_table_names())


async def test_migrating_an_empty_database_gives_the_tables_of_the_code(empty_database: Database) -> None:
    """After the migrations alembic finds no difference to `tables.py`."""
    await empty_database.write(migrate)
    assert await empty_database.read(tables) == {*metadata.tables, "alembic_version"}
    assert await empty_database.read(differences) == []


async def test_migrations_make_the_check_constraints_of_the_code(empty_database: Database) -> None:
    """Every CHECK of `tables.py` is in the database, by name: alembic does not compare them."""

    def checks(tx: Transaction) -> set[str]:
        look = inspect(tx.connection)
        return {str(check["name"]) for table in metadata.tables for check in look.get_check_constraints(table)}

    await empty_database.write(migrate)
    constraints = [constraint for table in metadata.tables.values() for constraint in table.constraints]
    in_code = {str(constraint.name) for constraint in constraints if isinstance(constraint, CheckConstraint)}
    assert "ck_batch_status" in in_code
    assert await empty_database.read(checks) == in_code


async def test_migrating_twice_changes_nothing(empty_database: Database) -> None:
    """A second migration keeps the rows and the tables as they are."""
    await empty_database.write(migrate)
    await empty_database.write(
        lambda tx: tx.connection.execute(text("INSERT INTO model (name, created_at) VALUES ('m', 1)"))
    )
    await empty_database.write(migrate)
    assert await empty_database.read(differences) == []
    assert await empty_database.read(lambda tx: tx.connection.scalar(text("SELECT count(*) FROM model"))) == 1


@pytest.mark.parametrize("look", [migrate, is_current])
async def test_a_database_of_a_later_era_is_refused(
    empty_database: Database, look: Callable[[Transaction], object]
) -> None:
    """A revision that does more than add raises NewerDatabase and is left as it is."""
    await empty_database.write(migrate)
    await empty_database.write(
        lambda tx: tx.connection.execute(text("UPDATE alembic_version SET version_num = 'a9999'"))
    )
    with pytest.raises(NewerDatabase, match="a9999"):
        await empty_database.write(look)
    assert (
        await empty_database.read(lambda tx: tx.connection.scalar(text("SELECT version_num FROM alembic_version")))
        == "a9999"
    )


def as_the_next_version(tx: Transaction) -> None:
    """Do what the next version's migration may do: add columns and tables."""
    for statement in (
        "ALTER TABLE batch ADD COLUMN mood VARCHAR",
        "ALTER TABLE slice ADD COLUMN colour VARCHAR NOT NULL DEFAULT 'blue'",
        "CREATE TABLE novelty (name VARCHAR NOT NULL PRIMARY KEY)",
        "UPDATE alembic_version SET version_num = '9999'",
    ):
        tx.connection.execute(text(statement))


async def test_a_version_works_with_what_the_next_one_has_added(empty_database: Database) -> None:
    """A running process goes on where a later version has migrated meanwhile, and one of its version may start."""
    await empty_database.write(migrate)
    await empty_database.write(add_organisations)
    before = await empty_database.write(lambda tx: add_running(tx, "batch_1"))
    assert len(await empty_database.write(partial(claim, batch_id=before))) == 2  # statements are prepared and cached
    await empty_database.write(as_the_next_version)
    after = await empty_database.write(lambda tx: add_running(tx, "batch_2"))
    assert len(await empty_database.write(partial(claim, batch_id=after))) == 2
    assert (await empty_database.read(lambda tx: get_batch(tx, after))).object.status is Status.IN_PROGRESS
    await empty_database.write(migrate)
    assert await empty_database.read(is_current)


def claim(tx: Transaction, *, batch_id: str) -> Sequence[object]:
    """Claim both Slices of a batch."""
    return claim_slices(tx, batch_id=batch_id, count=2, models=["m"], worker_id="w", lease=LEASE)


@pytest.mark.parametrize("path", sorted(VERSIONS.glob("0*.py")), ids=lambda path: path.stem)
def test_a_migration_only_adds(path: Path) -> None:
    """What a migration does, the version before it works with (`store/migrate.py`, eras)."""
    operations = set(re.findall(r"\bop\.([a-z_]+)", path.read_text()))
    assert operations <= {"add_column", "create_index", "create_table", "f"}


async def test_a_migration_that_fails_leaves_nothing(empty_database: Database) -> None:
    """All of a migration is one transaction: after a fault the database is as empty as before."""

    def fail_at_the_end(tx: Transaction) -> None:
        migrate(tx)
        raise LookupError("power cut")

    with pytest.raises(LookupError):
        await empty_database.write(fail_at_the_end)
    assert await empty_database.read(tables) == set()
