"""What is counted of each batch for its organisation, key, model and day; and the budgets that validation holds to."""

import asyncio
from collections.abc import Sequence
from decimal import Decimal

import pytest
from sqlalchemy import select

from batchmill.backends.packing import PackingBackend
from batchmill.spec.models import Catalogue, ModelFacts
from batchmill.spec.objects import Usage
from batchmill.spec.prices import Price
from batchmill.spec.states import Status
from batchmill.spec.usage import DAY_SECONDS, Used, day_end, day_of, total_used
from batchmill.store.database import Transaction
from batchmill.store.organisation import Allowance, find_organisation, save_allowance
from batchmill.store.tables import usage_day
from batchmill.store.usage import Whose, tokens_enqueued
from engine.mill import Hand, Mill, line, lines
from engine.test_packing import EMBEDDINGS, embeddings
from engine.test_twins import repeated
from fakeclock import settle

_TOKENS = Usage.__struct_fields__
PRICED = Catalogue([ModelFacts(name="echo", price=Price(input=Decimal(1_000_000), output=Decimal(0)))])


async def used_by_day(mill: Mill) -> dict[tuple[int, Whose], Used]:
    """Return all that was counted."""
    rows = (await mill.database.read(lambda tx: tx.connection.execute(select(usage_day)).mappings().all())) or ()
    return {
        (row["day"], Whose(row["organisation_id"], row["key_id"], row["model"])): Used(
            requests=row["requests"], failed=row["failed"], tokens=Usage(**{name: row[name] for name in _TOKENS})
        )
        for row in rows
    }


async def used(mill: Mill) -> dict[Whose, Used]:
    """Return all that was counted, where it was all in one day."""
    counted = await used_by_day(mill)
    assert len({day for day, _ in counted}) <= 1
    return {whose: of for (_, whose), of in counted.items()}


async def agrees(mill: Mill, *batch_ids: str) -> bool:
    """Say whether what was counted in days is what the batches' own rows say, altogether."""
    batches = [(await mill.look(batch_id)).object for batch_id in batch_ids]
    whole = total_used((await used_by_day(mill)).values())
    counts = [facts.counts for facts in batches]
    told = total_used(
        Used(requests=each.completed + each.failed, failed=each.failed, tokens=facts.usage or Usage())
        for each, facts in zip(counts, batches, strict=True)
    )
    return whole == told


async def test_each_line_counts_once_for_its_key_and_model(mill: Mill) -> None:
    """Lines that fail, lines of several models and batches of several keys: each sum is that of its own lines."""
    hand = mill.hand(mill.echo(models=("a", "b")))
    one = await mill.batch(lines(3, "a") + line("bad", 7, "a") + line("b", "hi", "b"), key_id="key_1")
    other = await mill.batch(lines(2, "a"), key_id="key_2")
    old = await mill.batch(lines(2, "a"))  # of an older version, which kept no key
    for batch_id in (one, other, old):
        assert await mill.finish(hand, batch_id) is Status.COMPLETED
    counted = {(whose.key_id, whose.model): (of.requests, of.failed) for whose, of in (await used(mill)).items()}
    assert counted == {("key_1", "a"): (4, 1), ("key_1", "b"): (1, 0), ("key_2", "a"): (2, 0), ("", "a"): (2, 0)}
    assert await agrees(mill, one, other, old)


async def test_lines_with_one_answer_are_requests_each_and_tokens_once(mill: Mill) -> None:
    """With `coalesce` what the backend told is counted once, as in the batch, and every line is a request."""
    batch_id = await mill.batch(repeated(50, 3))
    assert await mill.finish(mill.hand(mill.echo(latency=0.2), coalesce=True), batch_id) is Status.COMPLETED
    (of,) = (await used(mill)).values()
    assert (of.requests, of.failed) == (50, 0)
    assert await agrees(mill, batch_id)


async def test_embeddings_that_go_together_are_requests_each(mill: Mill) -> None:
    """A pack is no request; its tokens are shared out among its lines."""
    batch_id = await mill.batch(embeddings(30), endpoint=EMBEDDINGS)
    packing = PackingBackend(backend=mill.echo(latency=0.05), clock=mill.clock)
    assert await mill.finish(mill.hand(packing, window=64), batch_id) is Status.COMPLETED
    (of,) = (await used(mill)).values()
    assert (of.requests, of.failed) == (30, 1)
    assert of.tokens.input_tokens > 0
    assert await agrees(mill, batch_id)


async def _some_done(mill: Mill, hand: Hand, batch_id: str) -> int:
    """Let some lines of a batch be done; return how many."""
    await hand.accept()
    while not (done := (await mill.look(batch_id)).object.counts.completed):
        await mill.turn(hand, seconds=0.1)
    return done


@pytest.mark.parametrize("ends", ["cancelled", "expired"])
async def test_what_was_never_answered_is_a_request_that_failed(mill: Mill, ends: str) -> None:
    """A batch that ends early counts each of its lines: what was done as it was, the others without tokens."""
    hand = mill.hand(mill.echo(latency=5.0, models=("a", "b")), window=4)
    batch_id = await mill.batch(lines(10, "a") + lines(9, "b").replace(b"r-", b"s-"), window=3600, key_id="key_1")
    done = await _some_done(mill, hand, batch_id)
    if ends == "cancelled":
        await mill.cancel(batch_id)
    else:
        mill.clock.time += 3600
        await mill.sweeper.step()
    assert (await mill.finish(hand, batch_id)).value == ends
    counted = await used_by_day(mill)
    whole = total_used(counted.values())
    assert (whole.requests, whole.failed <= 19 - done) == (19, True)
    assert {(whose.key_id, whose.model) for _, whose in counted} == {("key_1", "a"), ("key_1", "b")}
    assert whole.failed > 0
    assert await agrees(mill, batch_id)


async def test_a_batch_without_lines_that_count_is_nothing(mill: Mill) -> None:
    """Rejected, or cancelled before it was validated: no request was ever one."""
    hand = mill.hand(mill.echo())
    rejected, cancelled = await mill.batch(b"{}\n"), await mill.batch(lines(3))
    await mill.cancel(cancelled)
    for batch_id in (rejected, cancelled):
        await mill.finish(hand, batch_id)
    assert await used(mill) == {}


async def test_what_is_taken_over_counts_once(mill: Mill) -> None:
    """Lines that were answered to a worker that died before they were durable are sent again, and count then."""
    backend = mill.echo()
    dead, heir = mill.hand(backend), mill.hand(backend)
    batch_id = await mill.batch(lines(5))
    await dead.accept()
    await mill.die(dead)
    assert await mill.finish(heir, batch_id) is Status.COMPLETED
    await mill.turn(dead, seconds=1)  # its commit comes late, and falls at the fence
    assert len(backend.calls) == 10
    (of,) = (await used(mill)).values()
    assert of.requests == 5
    assert await agrees(mill, batch_id)


async def test_a_line_counts_in_the_day_in_which_it_was_kept(mill: Mill) -> None:
    """Of a batch that runs over midnight (UTC) each day has its own lines, and no line is in both."""
    today = day_of(mill.clock.time)
    mill.clock.time = day_end(today) - 60.0
    hand = mill.hand(mill.echo(latency=1.0), window=4)
    batch_id = await mill.batch(lines(20), window=DAY_SECONDS)
    done = await _some_done(mill, hand, batch_id)
    mill.clock.time += 60
    assert await mill.finish(hand, batch_id) is Status.COMPLETED
    by_day = {day: of.requests for (day, _), of in (await used_by_day(mill)).items()}
    assert by_day[today] >= done
    assert by_day == {today: by_day[today], today + 1: 20 - by_day[today]}
    assert await agrees(mill, batch_id)


async def _budget(mill: Mill, **allowance: object) -> None:
    """Hold the organisation of the mill to this."""

    def statements(tx: Transaction) -> None:
        organisation_id = find_organisation(tx, name="ours")
        assert organisation_id is not None
        save_allowance(tx, organisation_id=organisation_id, allowance=Allowance(**allowance))  # type: ignore[arg-type]

    await mill.database.write(statements)


async def _enqueued(mill: Mill) -> dict[str, int]:
    def statements(tx: Transaction) -> dict[str, int]:
        organisation_id = find_organisation(tx, name="ours")
        assert organisation_id is not None
        return dict(tokens_enqueued(tx, organisation_id=organisation_id))

    return await mill.database.read(statements)


async def _codes(mill: Mill, batch_id: str) -> list[str]:
    errors = (await mill.look(batch_id)).object.errors or ()
    return [error.code for error in errors]


async def test_tokens_are_enqueued_by_model_until_they_are_done(mill: Mill) -> None:
    """What a batch in progress has to do counts, by estimate; a batch beyond the budget fails and says all numbers."""
    hand = mill.hand(mill.echo(models=("a", "b")))
    first = await mill.batch(lines(5, "a"))
    await hand.accept()
    enqueued = await _enqueued(mill)
    assert list(enqueued) == ["a"]
    await _budget(mill, enqueued_tokens=2 * enqueued["a"] - 1)
    refused, of_another_model = await mill.batch(lines(5, "a")), await mill.batch(lines(5, "b"))
    await hand.accept()
    assert (await mill.status(refused), await _codes(mill, refused)) == (Status.FAILED, ["token_limit_exceeded"])
    (error,) = (await mill.look(refused)).object.errors or ()
    for told in (f"{2 * enqueued['a'] - 1} tokens", f"{enqueued['a']} are", f"has {enqueued['a']},"):
        assert told in error.message
    assert await mill.status(of_another_model) is Status.IN_PROGRESS
    assert await _enqueued(mill) == {"a": enqueued["a"], "b": enqueued["a"]}
    assert await mill.finish(hand, first) is Status.COMPLETED
    assert "a" not in await _enqueued(mill)
    again = await mill.batch(lines(5, "a"))
    assert await mill.finish(hand, again) is Status.COMPLETED


async def test_a_cancelled_batch_has_nothing_enqueued(mill: Mill) -> None:
    """Its lines are not to be run any more, though they are not closed yet."""
    hand = mill.hand(mill.echo())
    batch_id = await mill.batch(lines(5))
    await hand.accept()
    assert await _enqueued(mill) != {}
    await mill.cancel(batch_id)
    assert await _enqueued(mill) == {}


async def test_of_two_validated_at_once_one_has_room(mill: Mill) -> None:
    """Two workers that end their validation in the same moment do not both see the room that is there for one."""
    hands = [mill.hand(mill.echo()) for _ in range(2)]
    first = await mill.batch(lines(5))
    await hands[0].accept()
    (tokens,) = (await _enqueued(mill)).values()
    await _budget(mill, enqueued_tokens=2 * tokens)
    both = [await mill.batch(lines(5)) for _ in hands]
    await asyncio.gather(*(hand.validator.step() for hand in hands))
    await settle()
    statuses = sorted([(await mill.status(batch_id)).value for batch_id in both])
    assert statuses == ["failed", "in_progress"]
    assert await mill.status(first) is Status.IN_PROGRESS
    assert await _enqueued(mill) == {"echo": 2 * tokens}


@pytest.mark.parametrize(
    ("catalogue", "most", "codes"),
    [
        (PRICED, "1e9", []),
        (PRICED, "1", ["batch_cost_exceeded"]),
        (Catalogue(), "1e9", ["batch_cost_unknown"]),
        (Catalogue(), None, []),
    ],
    ids=["room", "none", "no price", "no budget"],
)
async def test_a_batch_is_held_to_its_cost(
    mill: Mill, catalogue: Catalogue, most: str | None, codes: Sequence[str]
) -> None:
    """By the prices that are set and the tokens by estimate; where there is no price, nobody can promise it."""
    mill.catalogue = catalogue
    hand = mill.hand(mill.echo())
    batch_id = await mill.batch(lines(5))
    await _budget(mill, batch_cost=None if most is None else Decimal(most))
    await hand.accept()
    assert await _codes(mill, batch_id) == codes
    assert await mill.status(batch_id) is (Status.FAILED if codes else Status.IN_PROGRESS)
