"""What the operator says of backends."""

from dataclasses import replace

from batchmill.store.database import Database, Transaction
from batchmill.store.lane import say_health
from batchmill.store.roster import (
    Entry,
    add_backend,
    drain_backend,
    list_roster,
    remove_backend,
    workers_at,
)
from batchmill.store.worker import insert_worker

ADDED = Entry(
    name="http://gpu-3/v1",
    url="http://gpu-3/v1?tenant=a",
    models=("m", "org/n"),
    key_env="GPU_KEY",
    window=64,
    timeout=12.5,
    since=1,
)
PLAIN = Entry(name="http://gpu-4", url="http://gpu-4", since=2)


async def drain(database: Database, name: str, *, draining: bool = True) -> bool:
    """Drain a backend, or let it have lines again."""
    return await database.write(lambda tx: drain_backend(tx, name=name, draining=draining, now=9))


async def test_a_backend_is_added_as_it_is_given(database: Database) -> None:
    """All that was said comes back; said again, the last word stands."""
    for entry in (ADDED, PLAIN):
        await database.write(lambda tx, entry=entry: add_backend(tx, entry))
    assert await database.read(list_roster) == [ADDED, PLAIN]
    other = replace(PLAIN, models=("m",), since=3)
    await database.write(lambda tx: add_backend(tx, other))
    assert await database.read(list_roster) == [ADDED, other]


async def test_an_added_backend_is_drained_and_has_lines_again(database: Database) -> None:
    """Its entry stays; added anew, it is drained no more."""
    await database.write(lambda tx: add_backend(tx, ADDED))
    assert await drain(database, ADDED.name)
    assert await database.read(list_roster) == [replace(ADDED, draining=True, since=9)]
    assert await drain(database, ADDED.name, draining=False)
    assert await database.read(list_roster) == [replace(ADDED, since=9)]
    await drain(database, ADDED.name)
    await database.write(lambda tx: add_backend(tx, ADDED))
    assert await database.read(list_roster) == [ADDED]


async def test_a_backend_of_the_settings_is_drained_and_has_lines_again(database: Database) -> None:
    """Whoever is known to a worker can be drained; the entry goes with the last word about it."""
    assert not await drain(database, "flagged")
    await database.write(lambda tx: say_health(tx, worker_id="a", name="flagged", reason=None, now=1))
    assert await drain(database, "flagged", draining=False)
    assert await database.read(list_roster) == []
    assert await drain(database, "flagged")
    assert await database.read(list_roster) == [Entry(name="flagged", url=None, draining=True, since=9)]
    assert await drain(database, "flagged", draining=False)
    assert await database.read(list_roster) == []


async def test_what_was_said_is_taken_away(database: Database) -> None:
    """Once; of what nobody has said anything there is nothing to take away."""
    await database.write(lambda tx: add_backend(tx, ADDED))
    assert await database.write(lambda tx: remove_backend(tx, name=ADDED.name))
    assert not await database.write(lambda tx: remove_backend(tx, name=ADDED.name))
    assert await database.read(list_roster) == []


async def test_a_drain_is_over_when_no_worker_that_lives_has_a_lane(database: Database) -> None:
    """A dead worker's lane keeps nobody waiting."""

    def statements(tx: Transaction) -> None:
        insert_worker(tx, worker_id="a", lease=60.0, now=1)
        for worker in "ab":
            say_health(tx, worker_id=worker, name="x", reason=None, now=1)

    await database.write(statements)
    assert await database.read(lambda tx: workers_at(tx, name="x")) == 1
    assert await database.read(lambda tx: workers_at(tx, name="y")) == 0
