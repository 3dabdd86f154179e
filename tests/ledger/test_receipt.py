"""The receipt: what a batch has cost, by what each of its models used."""

from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal

import pytest
from sqlalchemy import event, func, select, update

from batchmill.blobs.blobs import Blobs
from batchmill.ledger.ledger import Ledger
from batchmill.spec.models import NOTHING_CONFIGURED, Catalogue, ModelFacts
from batchmill.spec.objects import Usage
from batchmill.spec.prices import Cost, Price
from batchmill.store.batch import Batch, list_batches
from batchmill.store.database import Database, Transaction
from batchmill.store.receipt import with_costs
from batchmill.store.tables import batch, batch_usage, slice_
from batchmill.store.worker import void_leases
from ledger.work import USAGE, add_work, claim, portion, result, whole
from store.rows import MINE, add_organisations

CATALOGUE = Catalogue(
    [
        ModelFacts(name="m", aliases=("nick",), price=Price(input=Decimal(1), cached=Decimal(0), output=Decimal(2))),
        ModelFacts(name="n", price=Price(input=Decimal(10), output=Decimal(20))),
    ]
)


@pytest.fixture(autouse=True)
async def _organisations(database: Database) -> None:
    await database.write(add_organisations)


def of_two_models(tx: Transaction) -> None:
    """Let every other Slice be of another model."""
    tx.connection.execute(update(slice_).where(slice_.c.ordinal % 2 == 1).values(model="n"))


def of_one_model(tx: Transaction) -> None:
    """Let batches be of the one model that their Slices are of."""
    tx.connection.execute(update(batch).values(model="m"))


def used(tx: Transaction) -> list[tuple[object, ...]]:
    """Return what is counted of each model."""
    columns = (batch_usage.c[name] for name in ("model", "input_tokens", "cached_tokens", "output_tokens"))
    return [tuple(row) for row in tx.connection.execute(select(*columns).order_by(batch_usage.c.model))]


async def priced(database: Database, catalogue: Catalogue = CATALOGUE) -> list[Cost | None]:
    """Return what each batch has cost."""

    def statements(tx: Transaction) -> Sequence[Batch]:
        return with_costs(tx, list_batches(tx, organisation_id=MINE, after=None, limit=9), catalogue=catalogue)

    return [found.object.cost for found in await database.read(statements)]


async def test_a_batch_of_several_models_counts_each(ledger: Ledger, database: Database, blobs: Blobs) -> None:
    """Commits add to what was used of each model; the price of each is what its tokens cost."""
    await add_work(database, blobs, slices=2, lines=2)
    await database.write(of_two_models)
    one, two = await ledger.claim(slices=2, models=["m", "n"])
    await ledger.commit([portion(one, [result(0)]), portion(two, [result(0)])])
    assert await database.read(used) == [("m", 10, 2, 5), ("n", 10, 2, 5)]
    await ledger.commit([portion(two, [result(1)], before=[0])])
    assert await database.read(used) == [("m", 10, 2, 5), ("n", 20, 4, 10)]
    spent = (8 * 1 + 5 * 2) + (20 * 10 + 10 * 20)
    assert await priced(database) == [Cost(amount=Decimal(spent).scaleb(-6), currency="USD")]


async def test_a_batch_of_one_model_needs_no_row(ledger: Ledger, database: Database, blobs: Blobs) -> None:
    """Its own row says all, and the commit is the shorter by a statement."""
    await add_work(database, blobs)
    await database.write(of_one_model)
    await ledger.commit([whole(held) for held in await claim(ledger)])
    assert await database.read(used) == []
    assert await priced(database) == [Cost(amount=Decimal(16 * (8 + 10)).scaleb(-6), currency="USD")]


async def test_what_a_late_worker_brings_is_not_counted(ledger: Ledger, database: Database, blobs: Blobs) -> None:
    """Of a group of which one claim has fallen, the others' usage alone is added."""
    await add_work(database, blobs, slices=2, lines=2)
    await database.write(of_two_models)
    one, two = await ledger.claim(slices=2, models=["m", "n"])
    late = replace(two, slice=replace(two.slice, epoch=two.slice.epoch - 1))
    assert await ledger.commit([whole(one), whole(late)]) == {late.slice.fence}
    assert await database.read(used) == [("m", 20, 4, 10)]


async def test_results_without_usage_add_no_row(ledger: Ledger, database: Database, blobs: Blobs) -> None:
    """What tells of no tokens has no cost, which is not the same as none to pay."""
    await add_work(database, blobs, slices=1, lines=2)
    held = (await claim(ledger))[0]
    await ledger.commit([portion(held, [result(0, usage=None), result(1, usage=Usage())])])
    assert await database.read(used) == []
    assert await priced(database) == [None]


async def test_a_cost_that_is_known_in_part_only_is_not_told(ledger: Ledger, database: Database, blobs: Blobs) -> None:
    """A version without this table has counted something, or a model has no price: the rest is not the whole."""
    await add_work(database, blobs, slices=2, lines=2)
    await database.write(of_two_models)
    await ledger.commit([whole(held) for held in await ledger.claim(slices=2, models=["m", "n"])])
    assert await priced(
        database, Catalogue([ModelFacts(name="m", price=Price(input=Decimal(1), output=Decimal(1)))])
    ) == [None]
    assert await priced(database, NOTHING_CONFIGURED) == [None]
    assert await priced(database) != [None]
    more = batch.c.input_tokens + USAGE.input_tokens
    await database.write(lambda tx: tx.connection.execute(update(batch).values(input_tokens=more)))
    assert await priced(database) == [None]


async def test_a_page_of_batches_is_priced_by_one_statement(ledger: Ledger, database: Database, blobs: Blobs) -> None:
    """However many there are, and none at all where no price is configured."""
    for name in ("batch_1", "batch_2", "batch_3"):
        await add_work(database, blobs, name, slices=1, lines=1)
    await ledger.commit([whole(held) for held in await claim(ledger)])

    def statements(tx: Transaction) -> list[int]:
        page = list_batches(tx, organisation_id=MINE, after=None, limit=9)
        asked: list[str] = []
        event.listen(tx.connection, "before_cursor_execute", lambda *facts: asked.append(facts[2]))
        assert [one.object.cost for one in with_costs(tx, page, catalogue=NOTHING_CONFIGURED)] == [None] * 3
        without = len(asked)
        assert None not in [one.object.cost for one in with_costs(tx, page, catalogue=CATALOGUE)]
        return [without, len(asked)]

    assert await database.read(statements) == [0, 1]


async def test_a_worker_that_died_is_paid_for_nothing_twice(ledger: Ledger, database: Database, blobs: Blobs) -> None:
    """The lines of a Slice that is taken over are counted when they are recorded, each once."""
    await add_work(database, blobs, slices=1, lines=2)
    held = (await claim(ledger))[0]
    await ledger.commit([portion(held, [result(0)])])
    await database.write(lambda tx: void_leases(tx, worker_id="heir"))
    again = (await claim(ledger))[0]
    await ledger.commit([portion(again, [result(1)], before=[0])])
    assert await ledger.commit([portion(held, [result(1)], before=[0])]) == {held.slice.fence}
    assert await database.read(used) == [("m", 20, 4, 10)]
    assert await database.read(lambda tx: tx.connection.scalar(select(func.count()).select_from(batch_usage))) == 1
