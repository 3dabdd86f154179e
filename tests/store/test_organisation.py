"""Organisations and their keys."""

from decimal import Decimal

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from batchmill.spec.scopes import DEFAULT_SCOPES, Scope
from batchmill.store.database import Database, Transaction
from batchmill.store.organisation import (
    Allowance,
    Caller,
    add_key,
    count_live_keys,
    expire_key,
    find_allowance,
    find_caller,
    find_key,
    find_name,
    find_organisation,
    has_keys,
    insert_key,
    insert_organisation,
    list_keys,
    list_organisations,
    page_keys,
    revoke_key,
    save_allowance,
)
from store.rows import NOW

DIGEST = "ab" * 32


def add(tx: Transaction) -> None:
    """Add an organisation with a key."""
    insert_organisation(tx, organisation_id="org_1", name="default", now=NOW)
    insert_key(tx, key_id="key_1", organisation_id="org_1", digest=DIGEST, now=NOW)


async def caller(database: Database, *, digest: str = DIGEST, now: int = NOW) -> Caller | None:
    """Return whom the key stands for."""
    return await database.read(lambda tx: find_caller(tx, digest=digest, now=now))


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
    assert await caller(database) == Caller(
        organisation_id="org_1", key_id="key_1", digest=DIGEST, scopes=DEFAULT_SCOPES, allowance=Allowance()
    )
    assert await caller(database, digest="cd" * 32) is None
    await database.write(lambda tx: revoke_key(tx, key_id="key_1", now=NOW))
    await database.write(lambda tx: revoke_key(tx, key_id="key_1", now=NOW + 5))
    assert await caller(database) is None
    (key,) = await database.read(list_keys)
    assert (key.revoked_at, key.is_live(NOW)) == (NOW, False)


async def test_a_key_is_good_until_it_expires(database: Database) -> None:
    """Up to the second before; an earlier end replaces a later one, and a later end changes nothing."""
    await database.write(add)
    await database.write(lambda tx: expire_key(tx, key_id="key_1", expires_at=NOW + 10))
    await database.write(lambda tx: expire_key(tx, key_id="key_1", expires_at=NOW + 20))
    assert await caller(database, now=NOW + 9) is not None
    assert await caller(database, now=NOW + 10) is None
    (key,) = await database.read(list_keys)
    assert key.is_live(NOW + 9)
    assert not key.is_live(NOW + 10)
    await database.write(lambda tx: expire_key(tx, key_id="key_1", expires_at=NOW + 5))
    assert await caller(database, now=NOW + 9) is None


async def test_a_key_keeps_what_it_was_made_with(database: Database) -> None:
    """Name, hint and scopes come back, and one key is found by its id."""

    def more(tx: Transaction) -> None:
        add(tx)
        insert_key(
            tx,
            key_id="key_2",
            organisation_id="org_1",
            digest="cd" * 32,
            now=NOW,
            name="ci",
            hint="c0ffee",
            scopes={Scope.READ},
            expires_at=NOW + 1,
        )

    await database.write(more)
    assert [key.id for key in await database.read(list_keys)] == ["key_1", "key_2"]
    (key,) = await database.read(lambda tx: list_keys(tx, key_id="key_2"))
    assert (key.org, key.name, key.hint, key.scopes) == ("default", "ci", "c0ffee", {Scope.READ})
    found = await caller(database, digest="cd" * 32)
    assert found is not None
    assert found.scopes == {Scope.READ}
    assert await database.read(lambda tx: list_keys(tx, key_id="key_3")) == []


async def test_keys_are_counted_and_found_within_their_organisation(database: Database) -> None:
    """Another organisation's key is none, and those that are good no more do not count; pages begin with the newest."""

    def more(tx: Transaction) -> list[str]:
        add(tx)
        insert_organisation(tx, organisation_id="org_2", name="other", now=NOW)
        ids = [add_key(tx, organisation_id=org, now=NOW + n)[0] for n, org in enumerate(("org_1", "org_2", "org_1"))]
        revoke_key(tx, key_id=ids[2], now=NOW)
        return [*ids, add_key(tx, organisation_id="org_1", now=NOW - 9, expires_in=10)[0]]

    first, theirs, revoked, expiring = await database.write(more)

    def seen(tx: Transaction) -> list[object]:
        return [
            count_live_keys(tx, organisation_id="org_1", now=NOW),
            count_live_keys(tx, organisation_id="org_1", now=NOW + 1),
            find_key(tx, organisation_id="org_1", key_id=theirs),
            find_name(tx, organisation_id="org_2"),
            [key.id for key in page_keys(tx, organisation_id="org_1", after=None, limit=2)],
            [key.id for key in page_keys(tx, organisation_id="org_1", after=revoked, limit=9)],
        ]

    assert await database.read(seen) == [3, 2, None, "other", ["key_1", revoked], [first, expiring]]


async def test_an_organisation_may_use_what_it_is_told(database: Database) -> None:
    """Its allowance is that of each of its keys, and None takes a limit away."""
    allowance = Allowance(
        max_files=1,
        max_bytes=2,
        models=("m", "n/é"),
        requests_per_minute=3,
        tokens_per_day=1 << 40,
        enqueued_tokens=0,
        batch_cost=Decimal("0.00000001"),
    )
    await database.write(add)
    for wanted in (allowance, Allowance(models=()), Allowance()):
        await database.write(lambda tx, a=wanted: save_allowance(tx, organisation_id="org_1", allowance=a))
        assert await database.read(lambda tx: find_allowance(tx, organisation_id="org_1")) == wanted
        found = await caller(database)
        assert found is not None
        assert found.allowance == wanted
        assert [org.allowance for org in await database.read(list_organisations)] == [wanted]


@pytest.mark.parametrize(
    ("models", "permitted"), [(None, True), ((), False), (("m",), True), (("n",), False)], ids=repr
)
def test_models_are_all_or_those_named(models: tuple[str, ...] | None, permitted: bool) -> None:
    """None permits every model; an empty list none."""
    assert Allowance(models=models).permits("m") is permitted


async def test_the_rows_of_an_older_version_work_on(database: Database) -> None:
    """A key written without the newer columns can read and write, and its organisation has no limits of its own."""

    def old(tx: Transaction) -> None:
        tx.connection.execute(text("INSERT INTO organisation (id, name, created_at) VALUES ('org_1', 'o', 1)"))
        tx.connection.execute(
            text(f"INSERT INTO api_key (id, organisation_id, digest, created_at) VALUES ('k', 'org_1', '{DIGEST}', 1)")  # noqa: S608 - a constant
        )

    await database.write(old)
    found = await caller(database)
    assert found is not None
    assert (found.scopes, found.allowance) == (DEFAULT_SCOPES, Allowance())
