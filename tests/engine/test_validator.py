"""The Validator: a Plan and Slices, or every bad line named."""

from dataclasses import replace

from batchmill.spec.limits import KIMI
from batchmill.spec.states import Status
from batchmill.store.organisation import Allowance, save_allowance
from batchmill.store.slice import list_slices
from engine.mill import LEASE, Mill, line, lines


async def test_a_good_input_is_planned(mill: Mill) -> None:
    """An accepted batch has its total, its model, and open Slices of at most 256 lines."""
    await mill.knows("echo")
    batch_id = await mill.batch(lines(600))
    assert await mill.hand(mill.echo()).validator.step()
    batch = await mill.look(batch_id)
    assert (batch.object.status, batch.object.counts.total, batch.object.model) == (Status.IN_PROGRESS, 600, "echo")
    slices = await mill.database.read(lambda tx: list_slices(tx, batch_id=batch_id))
    assert [(s.first, s.lines) for s in slices] == [(0, 256), (256, 256), (512, 88)]


async def test_every_bad_line_is_reported(mill: Mill) -> None:
    """A failed batch names every bad line by its physical number, and has neither counts nor files."""
    await mill.knows("echo")
    content = b"\n".join([line("a").strip(), b"", b"{nope", line("a").strip(), line("b", model="x").strip()])
    batch_id = await mill.batch(content)
    await mill.hand(mill.echo()).validator.step()
    batch = (await mill.look(batch_id)).object
    assert batch.status is Status.FAILED
    assert batch.failed_at is not None
    assert [(e.code, e.line) for e in batch.errors or ()] == [
        ("invalid_json_line", 3),
        ("duplicate_custom_id", 4),
        ("model_not_found", 5),
    ]
    assert (batch.counts.completed, batch.counts.failed, batch.counts.total) == (0, 0, 0)
    assert batch.output_file_id is batch.error_file_id is None


async def test_a_model_that_the_organisation_may_not_use_is_not_found(mill: Mill) -> None:
    """Its lines are told the same as of a model that there is not; another organisation's list counts for nothing."""
    await mill.knows("echo", "dear")
    batch_id = await mill.batch(line("a", model="echo") + line("b", model="dear") + line("c", model="none"))
    ours = (await mill.look(batch_id)).organisation_id
    await mill.database.write(
        lambda tx: save_allowance(tx, organisation_id=ours, allowance=Allowance(models=("echo",)))
    )
    await mill.hand(mill.echo()).validator.step()
    errors = (await mill.look(batch_id)).object.errors or ()
    assert [(e.code, e.line) for e in errors if e.code == "model_not_found"] == [
        ("model_not_found", 2),
        ("model_not_found", 3),
    ]


async def test_an_input_of_blank_lines_is_empty(mill: Mill) -> None:
    """An input without a single request line fails as `empty_file`."""
    await mill.knows("echo")
    batch_id = await mill.batch(b"\n  \n\r\n")
    await mill.hand(mill.echo()).validator.step()
    assert [(e.code, e.line) for e in (await mill.look(batch_id)).object.errors or ()] == [("empty_file", None)]


async def test_errors_are_capped(mill: Mill) -> None:
    """At most a thousand errors are kept, and a closing one counts the others."""
    mill.limits = replace(KIMI, max_errors=3)
    await mill.knows("echo")
    batch_id = await mill.batch(b"{\n" * 10)
    await mill.hand(mill.echo()).validator.step()
    errors = (await mill.look(batch_id)).object.errors or ()
    assert len(errors) == 4
    assert "7" in errors[-1].message


async def test_too_many_lines(mill: Mill) -> None:
    """A configured limit on lines is kept, and told beside whatever is wrong with the lines."""
    mill.limits = replace(KIMI, max_lines=2)
    await mill.knows("echo")
    for content, wrong in ((lines(3), []), (lines(2) + b"{\n", ["invalid_json_line"])):
        batch_id = await mill.batch(content)
        await mill.hand(mill.echo()).validator.step()
        errors = (await mill.look(batch_id)).object.errors or ()
        assert [error.code for error in errors] == [*wrong, "too_many_tasks"]


async def test_a_large_input_is_checked_in_a_child(mill: Mill) -> None:
    """An input above 8 MiB is checked in a process of its own, with the same result."""
    await mill.knows("echo")
    text = "x" * 4000
    batch_id = await mill.batch(b"".join(line(f"r-{n}", text) for n in range(2500)))
    assert await mill.hand(mill.echo()).validator.step()
    batch = (await mill.look(batch_id)).object
    assert (batch.status, batch.counts.total) == (Status.IN_PROGRESS, 2500)


async def test_validation_waits_for_a_model(mill: Mill) -> None:
    """While no backend has ever answered, a batch stays `validating`; then it goes on."""
    hand = mill.hand(mill.echo())
    batch_id = await mill.batch(lines(1))
    assert not await hand.validator.step()
    assert await mill.status(batch_id) is Status.VALIDATING
    await hand.scout.step()
    assert await hand.validator.step()
    assert await mill.status(batch_id) is Status.IN_PROGRESS


async def test_a_lapsed_validator_writes_nothing(mill: Mill) -> None:
    """A Validator that lost its lease in the middle neither accepts nor rejects; the one that took over does."""
    await mill.knows("echo")
    batch_id = await mill.batch(lines(3))
    slow, quick = mill.hand(mill.echo()).validator, mill.hand(mill.echo()).validator
    claimed = await mill.database.write(slow._claim)
    assert claimed is not None
    await mill.clock.advance(LEASE + 1)
    assert await quick.step()
    late = await slow._validate(claimed)
    await mill.database.write(lambda tx: slow._conclude(tx, claimed.batch, late))
    slices = await mill.database.read(lambda tx: list_slices(tx, batch_id=batch_id))
    assert [s.lines for s in slices] == [3]


async def test_a_cancel_during_validation_wins(mill: Mill) -> None:
    """A batch cancelled while it is validated ends as cancelled, without files or counts."""
    await mill.knows("echo")
    hand = mill.hand(mill.echo())
    batch_id = await mill.batch(lines(3))
    claimed = await mill.database.write(hand.validator._claim)
    assert claimed is not None
    await mill.cancel(batch_id)
    found = await hand.validator._validate(claimed)
    await mill.database.write(lambda tx: hand.validator._conclude(tx, claimed.batch, found))
    assert await mill.finish(hand, batch_id) is Status.CANCELLED
    facts = (await mill.look(batch_id)).object
    assert (facts.counts.total, facts.output_file_id, facts.error_file_id) == (0, None, None)
