"""Organisations and their keys."""

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from batchmill.store.database import Database, Transaction
from batchmill.store.organisation import (
    find_organisation,
    has_keys,
    insert_key,
    insert_organisation,
    organisation_of_key,
)
from store.rows import NOW


def add(tx: Transaction) -> None:
    """Add an organisation with a key."""
    insert_organisation(tx, organisation_id="org_1", name="default", now=NOW)
    insert_key(tx, key_id="key_1", organisation_id="org_1", digest="ab" * 32, now=NOW)


async def test_an_organisation_is_found_by_name(database: Database) -> None:
    """A name leads to one id, an unknown name to none, and a name is given once."""
    await database.write(add)
    assert await database.read(lambda tx: find_organisation(tx, name="default")) == "org_1"
    assert await database.read(lambda tx: find_organisation(tx, name="other")) is None
    with pytest.raises(IntegrityError):
        await database.write(lambda tx: insert_organisation(tx, organisation_id="org_2", name="default", now=NOW))


async def test_a_key_leads_to_its_organisation_until_it_is_revoked(database: Database) -> None:
    """The digest of a live key finds its organisation; a revoked or unknown one finds nothing."""
    assert not await database.read(has_keys)
    await database.write(add)
    assert await database.read(has_keys)
    assert await database.read(lambda tx: organisation_of_key(tx, digest="ab" * 32)) == "org_1"
    assert await database.read(lambda tx: organisation_of_key(tx, digest="cd" * 32)) is None
    await database.write(lambda tx: tx.connection.execute(text("UPDATE api_key SET revoked_at = 1")))
    assert await database.read(lambda tx: organisation_of_key(tx, digest="ab" * 32)) is None
