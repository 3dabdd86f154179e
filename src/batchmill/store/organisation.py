"""Organisations and their keys."""

from sqlalchemy import insert, select

from batchmill.store.database import Transaction
from batchmill.store.tables import api_key, organisation


def find_organisation(tx: Transaction, *, name: str) -> str | None:
    """Return the id of the organisation of this name."""
    return tx.connection.execute(select(organisation.c.id).where(organisation.c.name == name)).scalar()


def insert_organisation(tx: Transaction, *, organisation_id: str, name: str, now: int) -> None:
    """Add an organisation."""
    tx.connection.execute(insert(organisation).values(id=organisation_id, name=name, created_at=now))


def insert_key(tx: Transaction, *, key_id: str, organisation_id: str, digest: str, now: int) -> None:
    """Add a key by its digest; the key itself is not kept."""
    tx.connection.execute(
        insert(api_key).values(id=key_id, organisation_id=organisation_id, digest=digest, created_at=now)
    )


def has_keys(tx: Transaction) -> bool:
    """Say whether any key was ever made: the first start makes one."""
    return tx.connection.execute(select(api_key.c.id).limit(1)).first() is not None


def organisation_of_key(tx: Transaction, *, digest: str) -> str | None:
    """Return the organisation of a live key. The look-up is by digest, so its time tells nothing of the key (S3)."""
    live = select(api_key.c.organisation_id).where(api_key.c.digest == digest, api_key.c.revoked_at.is_(None))
    return tx.connection.execute(live).scalar()
