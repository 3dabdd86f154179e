"""Organisations, what each may use, and their keys."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, Row, Select, func, insert, or_, select, update

from batchmill.spec.ids import key_digest, key_hint, mint_id, mint_key
from batchmill.spec.scopes import DEFAULT_SCOPES, Scope, read_scopes, write_scopes
from batchmill.store.database import Transaction
from batchmill.store.tables import api_key, organisation


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowance:
    """What an organisation may use. None is what the server allows everyone: its limits, every model, any rate."""

    max_files: int | None = None
    max_bytes: int | None = None
    models: tuple[str, ...] | None = None
    requests_per_minute: int | None = None
    weight: int | None = None  # of the tokens that organisations share; None is 1
    tokens_per_day: int | None = None  # budgets: see `spec.budgets`; None is none
    enqueued_tokens: int | None = None
    batch_cost: Decimal | None = None

    def permits(self, model: str) -> bool:
        """Say whether the organisation may use this model."""
        return self.models is None or model in self.models


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who asks: the organisation, the key that was shown by its id and its digest, and what the two may do."""

    organisation_id: str
    key_id: str
    digest: str
    scopes: frozenset[Scope]
    allowance: Allowance


@dataclass(frozen=True, slots=True, kw_only=True)
class Organisation:
    """An organisation; `created_at` in Unix seconds."""

    id: str
    name: str
    created_at: int
    allowance: Allowance


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """A key as operators see it, which is never the key itself; times in Unix seconds."""

    id: str
    organisation_id: str
    org: str
    name: str | None
    hint: str | None
    scopes: frozenset[Scope]
    created_at: int
    expires_at: int | None
    revoked_at: int | None
    replaced_at: int | None

    def is_live(self, now: int) -> bool:
        """Say whether the key is good for a request."""
        return self.revoked_at is None and (self.expires_at is None or self.expires_at > now)


def find_organisation(tx: Transaction, *, name: str) -> str | None:
    """Return the id of the organisation of this name."""
    return tx.connection.execute(select(organisation.c.id).where(organisation.c.name == name)).scalar()


def insert_organisation(tx: Transaction, *, organisation_id: str, name: str, now: int) -> None:
    """Add an organisation, which may use what the server allows everyone."""
    tx.connection.execute(insert(organisation).values(id=organisation_id, name=name, created_at=now))


def lock_organisation(tx: Transaction, *, organisation_id: str) -> None:
    """Let what counts against an organisation's limits be counted and added by one transaction at a time.

    SQLite writes one by one anyway.
    """
    mine = select(organisation.c.id).where(organisation.c.id == organisation_id)
    tx.connection.execute(mine.with_for_update(key_share=True)).all()  # rows that refer to it may be added meanwhile


def list_organisations(tx: Transaction) -> Sequence[Organisation]:
    """Return every organisation, by name."""
    rows = tx.connection.execute(select(organisation).order_by(organisation.c.name))
    return [
        Organisation(id=row.id, name=row.name, created_at=row.created_at, allowance=_allowance(row)) for row in rows
    ]


def find_name(tx: Transaction, *, organisation_id: str) -> str:
    """Return the name of an organisation."""
    query = select(organisation.c.name).where(organisation.c.id == organisation_id)
    return str(tx.connection.execute(query).scalar_one())


def find_allowance(tx: Transaction, *, organisation_id: str) -> Allowance:
    """Return what an organisation may use."""
    return _allowance(tx.connection.execute(select(organisation).where(organisation.c.id == organisation_id)).one())


def save_allowance(tx: Transaction, *, organisation_id: str, allowance: Allowance) -> None:
    """Say from now on what an organisation may use."""
    values = {
        "max_files": allowance.max_files,
        "max_bytes": allowance.max_bytes,
        "models": None if allowance.models is None else msgspec.json.encode(allowance.models).decode(),
        "requests_per_minute": allowance.requests_per_minute,
        "weight": allowance.weight,
        "tokens_per_day": allowance.tokens_per_day,
        "enqueued_tokens": allowance.enqueued_tokens,
        "batch_cost": None if allowance.batch_cost is None else f"{allowance.batch_cost:f}",
    }
    tx.connection.execute(update(organisation).where(organisation.c.id == organisation_id).values(values))


def insert_key(
    tx: Transaction,
    *,
    key_id: str,
    organisation_id: str,
    digest: str,
    now: int,
    name: str | None = None,
    hint: str | None = None,
    scopes: Collection[Scope] = DEFAULT_SCOPES,
    expires_at: int | None = None,
) -> None:
    """Add a key by its digest; the key itself is not kept."""
    tx.connection.execute(
        insert(api_key).values(
            id=key_id,
            organisation_id=organisation_id,
            digest=digest,
            created_at=now,
            name=name,
            hint=hint,
            scopes=write_scopes(scopes),
            expires_at=expires_at,
        )
    )


def has_keys(tx: Transaction) -> bool:
    """Say whether any key was ever made: the first start makes one."""
    return tx.connection.execute(select(api_key.c.id).limit(1)).first() is not None


def find_caller(tx: Transaction, *, digest: str, now: int) -> Caller | None:
    """Return whom a live key stands for. The look-up is by digest, so its time tells nothing of the key (S3)."""
    query = (
        select(api_key.c.id.label("key_id"), api_key.c.scopes, api_key.c.organisation_id, organisation)
        .join(organisation, organisation.c.id == api_key.c.organisation_id)
        .where(api_key.c.digest == digest, _live(now))
    )
    row = tx.connection.execute(query).first()
    if row is None:
        return None
    return Caller(
        organisation_id=row.organisation_id,
        key_id=row.key_id,
        digest=digest,
        scopes=read_scopes(row.scopes),
        allowance=_allowance(row),
    )


def add_key(
    tx: Transaction,
    *,
    organisation_id: str,
    now: float,
    name: str | None = None,
    scopes: Collection[Scope] = DEFAULT_SCOPES,
    expires_in: float | None = None,
) -> tuple[str, str]:
    """Make a key; return its id, and the key itself, which is kept nowhere. `expires_in` in seconds."""
    key_id, key = mint_id("key", now), mint_key()
    insert_key(
        tx,
        key_id=key_id,
        organisation_id=organisation_id,
        digest=key_digest(key),
        now=int(now),
        name=name,
        hint=key_hint(key),
        scopes=scopes,
        expires_at=None if expires_in is None else int(now + expires_in),
    )
    return key_id, key


def replace_key(tx: Transaction, old: Key, *, now: float, overlap: float) -> tuple[str, str]:
    """Make a key like another that is live, which stays good for `overlap` seconds; see `add_key`.

    One that was replaced already is not to be replaced again: for how long it was made, nobody knows any more.
    """
    lasts = None if old.expires_at is None else old.expires_at - old.created_at
    expire_key(tx, key_id=old.id, expires_at=int(now + overlap))
    tx.connection.execute(update(api_key).where(api_key.c.id == old.id).values(replaced_at=int(now)))
    return add_key(tx, organisation_id=old.organisation_id, now=now, name=old.name, scopes=old.scopes, expires_in=lasts)


def count_live_keys(tx: Transaction, *, organisation_id: str, now: int) -> int:
    """Return how many keys of an organisation are good for a request."""
    mine = select(func.count()).select_from(api_key).where(api_key.c.organisation_id == organisation_id, _live(now))
    return int(tx.connection.execute(mine).scalar_one())


def find_key(tx: Transaction, *, organisation_id: str, key_id: str) -> Key | None:
    """Return a key of the organisation."""
    return next((key for key in list_keys(tx, key_id=key_id) if key.organisation_id == organisation_id), None)


def hold_key(tx: Transaction, *, key_id: str) -> None:
    """Let nobody revoke a key, or end its time, until this transaction ends: what it may do now it may do to the end.

    SQLite writes one by one anyway.
    """
    tx.connection.execute(select(api_key.c.id).where(api_key.c.id == key_id).with_for_update(read=True)).all()


def page_keys(tx: Transaction, *, organisation_id: str, after: str | None, limit: int) -> Sequence[Key]:
    """Return at most `limit` keys of the organisation, newest first, beyond the id `after`."""
    query = _keys().where(api_key.c.organisation_id == organisation_id).order_by(api_key.c.id.desc()).limit(limit)
    return _read(tx, query if after is None else query.where(api_key.c.id < after))


def list_keys(tx: Transaction, *, key_id: str | None = None) -> Sequence[Key]:
    """Return every key, or the one of this id; the oldest first."""
    query = _keys().order_by(api_key.c.id)
    return _read(tx, query if key_id is None else query.where(api_key.c.id == key_id))


def _keys() -> Select[Any]:
    return select(api_key, organisation.c.name.label("org")).join(
        organisation, organisation.c.id == api_key.c.organisation_id
    )


def _read(tx: Transaction, query: Select[Any]) -> Sequence[Key]:
    return [
        Key(
            id=row.id,
            organisation_id=row.organisation_id,
            org=row.org,
            name=row.name,
            hint=row.hint,
            scopes=read_scopes(row.scopes),
            created_at=row.created_at,
            expires_at=row.expires_at,
            revoked_at=row.revoked_at,
            replaced_at=row.replaced_at,
        )
        for row in tx.connection.execute(query)
    ]


def revoke_key(tx: Transaction, *, key_id: str, now: int) -> None:
    """Let a key be good for no request any more; a key that was revoked before keeps its time."""
    live = (api_key.c.id == key_id) & api_key.c.revoked_at.is_(None)
    tx.connection.execute(update(api_key).where(live).values(revoked_at=now))


def expire_key(tx: Transaction, *, key_id: str, expires_at: int) -> None:
    """Let a key be good until then, and no longer than it was."""
    later = or_(api_key.c.expires_at.is_(None), api_key.c.expires_at > expires_at)
    tx.connection.execute(update(api_key).where(api_key.c.id == key_id, later).values(expires_at=expires_at))


def _live(now: int) -> ColumnElement[bool]:
    return api_key.c.revoked_at.is_(None) & or_(api_key.c.expires_at.is_(None), api_key.c.expires_at > now)


def _allowance(row: Row[tuple[object, ...]]) -> Allowance:
    return Allowance(
        max_files=row.max_files,
        max_bytes=row.max_bytes,
        models=None if row.models is None else msgspec.json.decode(row.models, type=tuple[str, ...]),
        requests_per_minute=row.requests_per_minute,
        weight=row.weight,
        tokens_per_day=row.tokens_per_day,
        enqueued_tokens=row.enqueued_tokens,
        batch_cost=None if row.batch_cost is None else Decimal(row.batch_cost),
    )
