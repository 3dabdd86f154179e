"""What was used in a day, and what is still to be done."""

from sqlalchemy import text

from batchmill.spec.objects import Usage
from batchmill.spec.states import Event, Status
from batchmill.spec.usage import Used
from batchmill.store.batch import advance
from batchmill.store.database import Database, Transaction
from batchmill.store.organisation import insert_key
from batchmill.store.usage import Whose, count_usage, list_usage, tokens_enqueued, tokens_used
from store.rows import MINE, NOW, THEIRS, add_organisations, add_running

TOKENS = Usage(input_tokens=10, cached_tokens=2, output_tokens=5, reasoning_tokens=1)
ONE = Used(requests=3, failed=1, tokens=TOKENS)


def count(tx: Transaction) -> None:
    """Count some use of two organisations, in two days, with two keys and none."""
    add_organisations(tx)
    insert_key(tx, key_id="key_1", organisation_id=MINE, digest="d", name="ci", now=NOW)
    everyone = [Whose(MINE, "key_1", "a"), Whose(MINE, "key_2", "a"), Whose(MINE, "", "b"), Whose(THEIRS, "", "a")]
    for day in (7, 8, 8):
        count_usage(tx, dict.fromkeys(reversed(everyone), ONE), day=day)
    count_usage(tx, {}, day=9)


async def test_uses_of_a_day_add_up(database: Database) -> None:
    """Each key and model by itself, or all keys together; nothing of other days or of anybody else."""
    await database.write(count)
    rows = await database.read(lambda tx: list_usage(tx, organisation_id=MINE, first=8, last=9, limit=9))
    assert [(row.day, row.model, row.key_id, row.key_name) for row in rows] == [
        (8, "b", None, None),
        (8, "a", "key_1", "ci"),
        (8, "a", "key_2", None),
    ]
    twice = Usage(input_tokens=20, cached_tokens=4, output_tokens=10, reasoning_tokens=2)
    assert {row.used for row in rows} == {Used(requests=6, failed=2, tokens=twice)}
    summed = await database.read(
        lambda tx: list_usage(tx, organisation_id=MINE, first=0, last=7, limit=9, by_key=False)
    )
    assert [(row.day, row.model, row.key_id, row.key_name, row.used.requests) for row in summed] == [
        (7, "a", None, None, 6),
        (7, "b", None, None, 3),
    ]


async def test_tokens_of_a_day_are_those_in_and_out(database: Database) -> None:
    """Of all models and keys; of a day without use they are none."""
    await database.write(count)

    def seen(tx: Transaction) -> list[int]:
        return [tokens_used(tx, organisation_id=MINE, day=day) for day in (6, 7, 8)]

    assert await database.read(seen) == [0, 45, 90]


async def test_what_is_enqueued_is_what_running_batches_have_to_do(database: Database) -> None:
    """Open Slices of batches in progress, by estimate; one that an older version planned is an average one."""

    def add(tx: Transaction) -> None:
        add_organisations(tx)
        for name, organisation_id in (("batch_1", MINE), ("batch_2", MINE), ("batch_3", THEIRS), ("batch_4", MINE)):
            add_running(tx, name, slices=2, organisation_id=organisation_id)
        advance(tx, batch_id="batch_4", status=Status.IN_PROGRESS, event=Event.CANCEL, now=NOW)
        for statement in (
            "UPDATE slice SET tokens = 100 + ordinal WHERE batch_id = 'batch_1'",
            "UPDATE batch SET slice_tokens = 1000 WHERE id = 'batch_2'",
            "UPDATE slice SET open = FALSE WHERE batch_id = 'batch_2' AND ordinal = 0",
            "UPDATE slice SET model = 'n' WHERE batch_id = 'batch_1' AND ordinal = 1",
        ):
            tx.connection.execute(text(statement))

    await database.write(add)
    assert await database.read(lambda tx: tokens_enqueued(tx, organisation_id=MINE)) == {"m": 1100, "n": 101}
    assert await database.read(lambda tx: tokens_enqueued(tx, organisation_id="org_none")) == {}
