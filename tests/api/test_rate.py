"""Token buckets in memory, on a clock that the test moves; and in rows, where the rows move instead."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from sqlalchemy import text, update

from batchmill.api.rate import Buckets, SharedBuckets
from batchmill.store.database import DatabaseAway, Transaction
from batchmill.store.organisation import insert_organisation
from batchmill.store.postgres import PostgresDatabase
from batchmill.store.rate import take_token
from batchmill.store.tables import rate
from fakeclock import FakeClock
from postgres import Cluster, cluster

__all__ = ["cluster"]


async def test_a_bucket_fills_up_evenly() -> None:
    """As many calls as fit, then one for each share of the minute; a long rest gives no more than the limit."""
    clock = FakeClock()
    buckets = Buckets(clock=clock)
    assert [(await buckets.take("a", per_minute=3)).allowed for _ in range(4)] == [True, True, True, False]
    clock.uptime += 19
    refused = await buckets.take("a", per_minute=3)
    assert (refused.allowed, refused.wait) == (False, 1)
    clock.uptime += 1
    assert (await buckets.take("a", per_minute=3)).allowed
    clock.uptime += 10_000
    assert [(await buckets.take("a", per_minute=3)).remaining for _ in range(3)] == [2, 1, 0]


async def test_a_lower_limit_counts_at_once() -> None:
    """What a bucket held under a higher limit is cut to the new one."""
    buckets = Buckets(clock=FakeClock())
    await buckets.take("a", per_minute=100)
    assert [(await buckets.take("a", per_minute=1)).allowed for _ in range(2)] == [True, False]


async def test_a_slow_rate_waits_for_a_minute_at_most() -> None:
    """One a minute: the next is a minute away, which is as far as Retry-After may point."""
    buckets = Buckets(clock=FakeClock())
    assert (await buckets.take("a", per_minute=1)).reset == 60
    assert (await buckets.take("a", per_minute=1)).wait == 60


async def test_no_more_buckets_are_kept_than_allowed() -> None:
    """The one unused for longest is forgotten first; one in use is not."""
    buckets = Buckets(clock=FakeClock(), most=2)
    for name in ("a", "b", "a", "c"):
        await buckets.take(name, per_minute=2)
    assert not (await buckets.take("a", per_minute=2)).allowed  # still known
    assert (await buckets.take("b", per_minute=2)).remaining == 1  # new again


@pytest.fixture
async def databases(cluster: Cluster) -> AsyncIterator[list[PostgresDatabase]]:
    """Two processes' ways to one database, in which there are the organisations `a` and `b`."""
    url = await cluster.new_database()
    opened = [PostgresDatabase(url=url, patience=1) for _ in range(2)]
    for name in ("a", "b"):
        await opened[0].write(lambda tx, name=name: insert_organisation(tx, organisation_id=name, name=name, now=1))
    yield opened
    for database in opened:
        await database.close()
    await cluster.give_back(url)


async def rest(database: PostgresDatabase, *, seconds: float) -> None:
    """Let every bucket be as if so much time had passed since the last call."""
    await database.write(lambda tx: tx.connection.execute(update(rate).values(counted_at=rate.c.counted_at - seconds)))


async def test_processes_grant_the_limit_together(databases: list[PostgresDatabase]) -> None:
    """Of 60 calls at once through two processes as many are allowed as fit; each organisation has its bucket."""
    both = [SharedBuckets(database=database) for database in databases]
    for name, limit in (("a", 7), ("b", 3)):
        taken = await asyncio.gather(*(both[call % 2].take(name, per_minute=limit) for call in range(60)))
        granted = sorted((one.remaining for one in taken if one.allowed), reverse=True)
        assert granted == list(range(limit - 1, -1, -1))


async def test_a_row_fills_up_evenly(databases: list[PostgresDatabase]) -> None:
    """Rows count as memory does: a share of the minute each, no more than the limit, and a lower limit at once."""
    buckets = SharedBuckets(database=databases[0])
    assert [(await buckets.take("a", per_minute=3)).allowed for _ in range(4)] == [True, True, True, False]
    await rest(databases[1], seconds=12)
    refused = await buckets.take("a", per_minute=3)
    assert (refused.allowed, refused.remaining) == (False, 0)
    assert (1 <= refused.wait <= 8, 41 <= refused.reset <= 48) == (True, True)
    await rest(databases[1], seconds=8)
    assert (await buckets.take("a", per_minute=3)).allowed
    await rest(databases[1], seconds=10_000)
    assert [(await buckets.take("a", per_minute=3)).remaining for _ in range(3)] == [2, 1, 0]
    await rest(databases[1], seconds=10_000)
    assert [(await buckets.take("a", per_minute=1)).allowed for _ in range(2)] == [True, False]


async def test_a_clock_that_steps_back_takes_no_token_away(databases: list[PostgresDatabase]) -> None:
    """A row counted in the future, of a server whose clock was ahead, neither fills up nor empties until then."""
    buckets = SharedBuckets(database=databases[0])
    await buckets.take("a", per_minute=3)
    await rest(databases[1], seconds=-1000)
    assert [(await buckets.take("a", per_minute=3)).remaining for _ in range(3)] == [1, 0, 0]


async def test_a_taken_token_is_not_waited_for_on_the_disk(databases: list[PostgresDatabase]) -> None:
    """The transaction that takes a token does not wait for the disk; the next one of the same session does."""

    def look(tx: Transaction) -> str:
        return str(tx.connection.scalar(text("SHOW synchronous_commit")))

    def take(tx: Transaction) -> str:
        take_token(tx, organisation_id="a", per_minute=3)
        return look(tx)

    assert [await databases[0].write(statements) for statements in (take, look)] == ["off", "on"]


async def test_a_limit_may_be_larger_than_32_bits(databases: list[PostgresDatabase]) -> None:
    """Rows count to wherever an operator sets the limit."""
    taken = await SharedBuckets(database=databases[0]).take("a", per_minute=10**12)
    assert (taken.allowed, taken.limit, taken.remaining) == (True, 10**12, 10**12 - 1)


async def test_a_database_that_is_away_is_said_to_be(databases: list[PostgresDatabase], cluster: Cluster) -> None:
    """Nothing is granted that cannot be counted."""
    with cluster.paused(), pytest.raises(DatabaseAway):
        await SharedBuckets(database=databases[0]).take("a", per_minute=3)
