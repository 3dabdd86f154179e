"""The statements over replays: what a POST answered, and who may have it again."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest
from sqlalchemy import select

from batchmill.store.database import Database, SqliteDatabase, Transaction
from batchmill.store.replay import (
    Call,
    KeyRecord,
    delete_old_replays,
    delete_running,
    find_key,
    has_old_replays,
    insert_answer,
    insert_running,
    lock_calls,
    may_be_lost,
    note_arrival,
    renew_running,
    take_answer,
)
from batchmill.store.tables import replay
from fakeclock import FakeClock
from store.rows import LAPSED, LEASE, MINE, NOW, THEIRS, add_organisations

KEPT = 900
UNKEYED = Call(id="replay_0", organisation_id=MINE, caller="c1", route="batches", key_digest=None, retries=0)
KEYED = replace(UNKEYED, route="files", key_digest="k1")


@pytest.fixture(autouse=True)
async def _organisations(database: Database) -> None:
    await database.write(add_organisations)


def keep(tx: Transaction, name: str, *, call: Call = UNKEYED, fingerprint: str = "f1", now: int = NOW) -> None:
    """Keep the answer that tells of `batch_NAME`."""
    insert_answer(
        tx,
        call=replace(call, id=f"replay_{name}"),
        fingerprint=fingerprint,
        made_id=f"batch_{name}",
        answer=name.encode(),
        expires_at=now + KEPT,
    )


def take(tx: Transaction, retries: int, *, call: Call = UNKEYED, fingerprint: str = "f1", now: int = NOW) -> str | None:
    """Ask again for the `retries`th time; return the name in the answer."""
    asked = replace(call, id="replay_z", retries=retries)
    answer = take_answer(tx, call=asked, fingerprint=fingerprint, now=now, expires_at=now + KEPT)
    return None if answer is None else answer.decode()


def find(tx: Transaction, call: Call = KEYED, *, now: int = NOW, lease: float = LEASE) -> KeyRecord | None:
    """Find a key's record as another call of the same key."""
    return find_key(tx, call=replace(call, id="replay_other"), now=now, lease=lease)


def ids(tx: Transaction) -> Sequence[str]:
    """Return the records there are."""
    return tx.connection.execute(select(replay.c.id).order_by(replay.c.id)).scalars().all()


async def test_a_retry_takes_what_its_first_try_made(database: Database) -> None:
    """The first retry gets the answer of the first try, once; the second retry gets it again."""

    def statements(tx: Transaction) -> list[str | None]:
        keep(tx, "a")
        return [take(tx, 0), take(tx, 1), take(tx, 1), take(tx, 2), take(tx, 2)]

    assert await database.write(statements) == [None, "a", None, "a", None]


async def test_identical_calls_do_not_take_each_others(database: Database) -> None:
    """However the tries of identical calls are mixed, each finds a record of the try before its own."""

    def statements(tx: Transaction) -> list[str | None]:
        keep(tx, "a")
        first = take(tx, 1)
        keep(tx, "b")  # younger, and its own retry is yet to come
        return [first, take(tx, 2), take(tx, 1), take(tx, 2), take(tx, 2)]

    assert await database.write(statements) == ["a", "a", "b", "b", None]


async def test_of_several_the_newest_is_taken(database: Database) -> None:
    """A client that lost its answer most likely lost the last one; each record is taken once."""

    def statements(tx: Transaction) -> list[str | None]:
        for name in ("a", "b", "c"):
            keep(tx, name)
        return [take(tx, 1) for _ in range(4)]

    assert await database.write(statements) == ["c", "b", "a", None]


@pytest.mark.parametrize(
    ("call", "fingerprint"),
    [
        (UNKEYED, "f2"),
        (replace(UNKEYED, caller="c2"), "f1"),
        (replace(UNKEYED, organisation_id=THEIRS), "f1"),
        (replace(UNKEYED, route="files"), "f1"),
    ],
    ids=["fingerprint", "key", "organisation", "route"],
)
async def test_another_call_is_another(database: Database, call: Call, fingerprint: str) -> None:
    """What differs in fingerprint, API key, organisation or route is never an answer; nor is one of a keyed call."""

    def statements(tx: Transaction) -> list[str | None]:
        keep(tx, "a", call=call, fingerprint=fingerprint)
        keep(tx, "b", call=replace(UNKEYED, key_digest="k1"))
        return [take(tx, 1), take(tx, 1, call=call, fingerprint=fingerprint)]

    assert await database.write(statements) == [None, "a"]


async def test_a_record_lasts_from_when_it_was_last_served(database: Database) -> None:
    """A second retry has as long as the first one had; at the end of its time nobody takes it."""

    def statements(tx: Transaction) -> list[str | None]:
        keep(tx, "a")
        keep(tx, "b", fingerprint="f2")
        late = NOW + KEPT
        return [
            take(tx, 1, now=late - 1),
            take(tx, 2, now=late + KEPT - 2),
            take(tx, 3, now=late + 2 * KEPT - 2),
            take(tx, 1, fingerprint="f2", now=late),
        ]

    assert await database.write(statements) == ["a", "a", None, None]


async def test_what_has_arrived_is_never_replayed(database: Database) -> None:
    """Once its caller uses the id nobody takes the record; the use by another key says nothing."""

    def statements(tx: Transaction) -> list[object]:
        keep(tx, "a")
        seen: list[object] = [may_be_lost(tx, caller="c1", made_id="batch_a")]
        seen.append(may_be_lost(tx, caller="c2", made_id="batch_a"))
        note_arrival(tx, caller="c2", made_id="batch_a")
        seen.append(take(tx, 1))
        note_arrival(tx, caller="c1", made_id="batch_a")
        return [*seen, take(tx, 2), may_be_lost(tx, caller="c1", made_id="batch_a")]

    assert await database.write(statements) == [True, False, "a", None, False]


async def test_an_answer_to_a_key_outlives_its_use(database: Database) -> None:
    """With an Idempotency-Key the use of the id changes nothing."""

    def statements(tx: Transaction) -> KeyRecord | None:
        keep(tx, "a", call=KEYED)
        note_arrival(tx, caller="c1", made_id="batch_a")
        return find(tx)

    assert await database.write(statements) == KeyRecord(id="replay_a", fingerprint="f1", answer=b"a")


async def test_a_key_is_of_an_organisation_and_a_route(database: Database) -> None:
    """Another organisation, another route and another key are free; another API key of the organisation is not."""

    def statements(tx: Transaction) -> list[bool]:
        keep(tx, "a", call=KEYED)
        others = ({"organisation_id": THEIRS}, {"route": "batches"}, {"key_digest": "k2"}, {"caller": "c2"})
        return [find(tx, replace(KEYED, **other)) is not None for other in others]

    assert await database.write(statements) == [False, False, False, True]


async def test_a_running_call_holds_its_key(database: Database) -> None:
    """While it runs its record has no answer; its answer then replaces it, under the same id."""

    def statements(tx: Transaction) -> list[KeyRecord | None]:
        insert_running(tx, call=replace(KEYED, id="replay_a"), expires_at=NOW + KEPT, lease=LEASE)
        running = find(tx)
        keep(tx, "a", call=KEYED)
        return [running, find(tx)]

    running, done = await database.write(statements)
    assert running == KeyRecord(id="replay_a", fingerprint=None, answer=None)
    assert done == KeyRecord(id="replay_a", fingerprint="f1", answer=b"a")


async def test_a_dead_call_loses_its_key(database: Database) -> None:
    """A lapsed lease frees the key for others, not its own call; what the dead one does then changes nothing."""
    dead = replace(KEYED, id="replay_dead")

    def statements(tx: Transaction) -> list[object]:
        insert_running(tx, call=dead, expires_at=NOW + KEPT, lease=LAPSED)
        own = find_key(tx, call=dead, now=NOW, lease=LEASE)
        seen: list[object] = [own is not None, find(tx)]
        keep(tx, "a", call=KEYED)
        renew_running(tx, call=dead, lease=LEASE)
        delete_running(tx, call=dead)
        return [*seen, find_key(tx, call=dead, now=NOW, lease=LEASE)]

    assert await database.write(statements) == [True, None, KeyRecord(id="replay_a", fingerprint="f1", answer=b"a")]


async def test_a_renewed_lease_holds(database: Database) -> None:
    """A call that renews its lease is not dead, and one that gives its key back leaves nothing."""
    call = replace(KEYED, id="replay_a")

    def statements(tx: Transaction) -> list[object]:
        insert_running(tx, call=call, expires_at=NOW + KEPT, lease=LAPSED)
        renew_running(tx, call=call, lease=LEASE)
        held = find(tx) is not None
        delete_running(tx, call=call)
        return [held, find(tx), list(ids(tx))]

    assert await database.write(statements) == [True, None, []]


async def test_a_lease_of_an_earlier_boot_is_none(database: Database, clock: FakeClock) -> None:
    """On SQLite the lease clock begins anew with the machine: a lease longer than any that is given is of before."""
    if not isinstance(database, SqliteDatabase):  # PostgreSQL's clock goes on
        return
    clock.uptime = 1_000_000.0
    await database.write(lambda tx: insert_running(tx, call=KEYED, expires_at=NOW + KEPT, lease=LEASE))
    assert await database.write(find) is not None
    clock.uptime = 5.0
    assert await database.write(find) is None


async def test_a_key_is_free_after_its_time(database: Database) -> None:
    """The answer to a key is kept to the last second, and then the key is as new."""

    def statements(tx: Transaction) -> list[object]:
        keep(tx, "a", call=KEYED)
        return [find(tx, now=NOW + KEPT - 1) is not None, find(tx, now=NOW + KEPT), list(ids(tx))]

    assert await database.write(statements) == [True, None, []]


async def test_old_records_are_removed_a_few_at_a_time(database: Database) -> None:
    """Records past their time go, at most `limit` in one statement; younger ones stay."""

    def statements(tx: Transaction) -> list[object]:
        for name in ("a", "b", "c"):
            keep(tx, name)
        keep(tx, "young", now=NOW + 1)
        seen: list[object] = [has_old_replays(tx, now=NOW + KEPT - 1)]
        seen += [delete_old_replays(tx, now=NOW + KEPT, limit=2) for _ in range(3)]
        return [*seen, has_old_replays(tx, now=NOW + KEPT), list(ids(tx))]

    assert await database.write(statements) == [False, 2, 1, 0, False, ["replay_young"]]


async def test_retries_at_once_take_different_records(database: Database) -> None:
    """Twenty retries of twenty identical calls, all at once: each gets another's answer or its own, none twice."""
    names = [f"{n:02}" for n in range(20)]
    await database.write(lambda tx: [keep(tx, name) for name in names])
    taken = await asyncio.gather(*(database.write(lambda tx: take(tx, 1)) for _ in names))
    assert sorted(map(str, taken)) == names


async def test_tries_at_once_make_one(database: Database) -> None:
    """Of two calls with one key that come at once, the second waits for the first and finds its answer."""

    def once(tx: Transaction, name: str) -> bool:
        call = replace(KEYED, id=f"replay_{name}")
        lock_calls(tx, call=call)
        if find_key(tx, call=call, now=NOW, lease=LEASE) is not None:
            return False
        keep(tx, name, call=KEYED)
        return True

    made = await asyncio.gather(*(database.write(lambda tx, n=n: once(tx, str(n))) for n in range(10)))  # type: ignore[misc]
    assert sum(made) == 1
