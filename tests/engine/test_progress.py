"""What is told of a batch's lines while an engine runs it, whoever dies meanwhile."""

from batchmill.schedule.retry import Fault
from batchmill.spec.models import NOTHING_CONFIGURED
from batchmill.spec.progress import ProgressObject
from batchmill.spec.states import Status
from batchmill.store.progress import find_progress
from engine.faulty import Falling
from engine.mill import LEASE, Mill, line, lines

BAD = line("bad", 7)  # what the echo backend refuses


async def told(mill: Mill, batch_id: str) -> ProgressObject:
    """Return how far a batch is, as its organisation is told."""
    organisation_id = (await mill.look(batch_id)).organisation_id
    found = await mill.database.read(
        lambda tx: find_progress(
            tx,
            organisation_id=organisation_id,
            batch_id=batch_id,
            catalogue=NOTHING_CONFIGURED,
            now=mill.clock.now(),
        )
    )
    assert found is not None
    return found


def shares(found: ProgressObject) -> dict[str, int]:
    """Return the lines of each backend."""
    return {share.backend: share.lines for share in found.shares}


def groups(found: ProgressObject) -> list[tuple[int | None, str | None, int]]:
    """Return status, code and count of each group."""
    return [(errors.group.status, errors.group.code, errors.count) for errors in found.errors]


async def test_each_backend_has_its_share(mill: Mill) -> None:
    """Two backends together have done every line, and their tokens are the batch's."""
    hand = mill.hand(mill.echo(latency=0.1, name="one"), mill.echo(latency=0.1, name="two"))
    batch_id = await mill.batch(lines(60))
    assert await mill.finish(hand, batch_id) is Status.COMPLETED
    found = await told(mill, batch_id)
    usage = found.batch.usage
    assert sorted(shares(found)) == ["one", "two"]
    assert sum(shares(found).values()) == 60
    assert usage is not None
    assert sum(share.prompt_tokens for share in found.shares) == usage.input_tokens
    assert sum(share.completion_tokens for share in found.shares) == usage.output_tokens


async def test_sends_beyond_the_first_are_counted(mill: Mill) -> None:
    """Two lines of three fail once or twice before they are answered: three retries."""
    backend = Falling(mill, {1: [Fault.RESET], 2: [Fault.RESET, Fault.RESET]})
    batch_id = await mill.batch(lines(12))
    assert await mill.finish(mill.hand(backend), batch_id) is Status.COMPLETED
    found = await told(mill, batch_id)
    assert found.retries == len(backend.calls) - 12 == 3
    assert shares(found) == {"echo:": 12}


async def test_failed_lines_are_grouped_as_they_fail(mill: Mill) -> None:
    """What a backend refuses is told at once, with the lines that it has refused; and no line is in no group."""
    hand = mill.hand(mill.echo())
    batch_id = await mill.batch(lines(3) + BAD + line("worse", 8))
    await hand.accept()
    await mill.turn(hand, seconds=1)
    (errors,) = (await told(mill, batch_id)).errors
    assert (errors.group.status, errors.count) == (400, 2)
    assert sorted(errors.custom_ids) == ["bad", "worse"]
    assert (await told(mill, batch_id)).wire()["errors_ungrouped"] == 0


async def test_twins_are_in_no_share_and_in_their_group(mill: Mill) -> None:
    """A line that got its twin's answer was sent by nobody; its failure is one all the same."""
    content = b"".join(line(f"r-{n}", "hi") for n in range(10)) + b"".join(line(f"x-{n}", 7) for n in range(10))
    batch_id = await mill.batch(content)
    assert await mill.finish(mill.hand(mill.echo(), coalesce=True), batch_id) is Status.COMPLETED
    found = await told(mill, batch_id)
    assert shares(found) == {"echo:": 2}
    assert [count for _, _, count in groups(found)] == [10]
    assert found.retries == 0


async def test_after_a_takeover_every_line_counts_once(mill: Mill) -> None:
    """What a worker sent and never made durable is nobody's; its heir's is."""
    content = lines(20) + BAD
    dead, heir = mill.hand(mill.echo(latency=5.0, name="dead")), mill.hand(mill.echo(name="heir"))
    batch_id = await mill.batch(content)
    await dead.accept()
    await mill.die(dead)
    await mill.clock.advance(LEASE + 1)
    assert await mill.finish(heir, batch_id) is Status.COMPLETED
    found = await told(mill, batch_id)
    assert shares(found) == {"heir": 21}
    assert [count for _, _, count in groups(found)] == [1]
    assert found.wire()["errors_ungrouped"] == 0


async def test_lines_that_a_cancel_leaves_are_a_group(mill: Mill) -> None:
    """They come with the seal, beside those that failed before, and with their first custom_ids."""
    hand = mill.hand(mill.echo(latency=1.0), window=2)
    batch_id = await mill.batch(BAD + line("worse", 8) + lines(30))
    await hand.accept()
    await mill.turn(hand, seconds=2)
    await mill.cancel(batch_id)
    assert "batch_cancelled" not in {code for _, code, _ in groups(await told(mill, batch_id))}
    assert await mill.finish(hand, batch_id) is Status.CANCELLED
    found = await told(mill, batch_id)
    left = next(errors for errors in found.errors if errors.group.code == "batch_cancelled")
    counts = found.batch.counts
    assert left.count == counts.failed - 2 > 5
    assert list(left.custom_ids) == [f"r-{30 - left.count + n}" for n in range(5)]
    assert sum(count for _, _, count in groups(found)) == counts.failed
    assert found.ahead is None


async def test_lines_that_expire_are_a_group(mill: Mill) -> None:
    """All that the window has closed on, in one transaction with the end."""
    hand = mill.hand(mill.echo(latency=100.0), window=2)
    batch_id = await mill.batch(lines(9), window=4)
    await hand.accept()
    await mill.turn(hand, seconds=5)
    await mill.sweeper.step()
    assert await mill.finish(hand, batch_id) is Status.EXPIRED
    assert groups(await told(mill, batch_id)) == [(None, "batch_expired", 9)]
