"""`batchmill keys`: make API keys, with or without a running server."""

import asyncio
from dataclasses import dataclass

from batchmill.assemble import Storage, build_clock
from batchmill.cli import data_directory
from batchmill.settings import Settings
from batchmill.spec.ids import key_digest, mint_id, mint_key
from batchmill.store.database import Transaction
from batchmill.store.migrate import migrate
from batchmill.store.organisation import find_organisation, insert_key, insert_organisation


@dataclass(frozen=True, slots=True, kw_only=True)
class MadeKey:
    """A new key: `key` is shown once and kept nowhere."""

    id: str
    key: str
    org: str


def make_key(tx: Transaction, *, name: str, now: float) -> MadeKey:
    """Make a key for the organisation of this name, which is made if it is new."""
    organisation_id = find_organisation(tx, name=name)
    if organisation_id is None:
        organisation_id = mint_id("org", now)
        insert_organisation(tx, organisation_id=organisation_id, name=name, now=int(now))
    made = MadeKey(id=mint_id("key", now), key=mint_key(), org=name)
    insert_key(tx, key_id=made.id, organisation_id=organisation_id, digest=key_digest(made.key), now=int(now))
    return made


def create_key(settings: Settings, *, name: str) -> MadeKey:
    """Make a key in a data directory, which is made if it is new; the server may run meanwhile."""
    data_directory.prepare(settings.data)
    return asyncio.run(_create(settings, name))


async def _create(settings: Settings, name: str) -> MadeKey:
    clock = build_clock()
    database = Storage(settings=settings, clock=clock).database

    def statements(tx: Transaction) -> MadeKey:
        migrate(tx)
        return make_key(tx, name=name, now=clock.now())

    try:
        return await database.write(statements)
    finally:
        await database.close()
