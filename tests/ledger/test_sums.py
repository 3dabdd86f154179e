"""What Results come to, beside counts and tokens; and that a commit counts only what stands."""

from collections.abc import Callable

from msgspec.structs import replace

from batchmill.blobs.blobs import Blobs
from batchmill.ledger.ledger import Ledger
from batchmill.ledger.segment import Result
from batchmill.ledger.sums import by_cause, causes_of, retries_of, shares_of
from batchmill.spec.models import NOTHING_CONFIGURED
from batchmill.spec.objects import Usage
from batchmill.spec.progress import Share
from batchmill.spec.results import unanswered
from batchmill.store.database import Database
from batchmill.store.progress import find_progress
from batchmill.store.worker import void_leases
from ledger.work import USAGE, add_work, claim, portion, result
from store.rows import MINE, NOW, add_organisations


def by(backend: str | None, index: int = 0, *, attempts: int = 1, usage: Usage | None = USAGE) -> Result:
    """Return a Result that this backend had the last word on."""
    return replace(result(index, usage=usage), backend=backend, attempts=attempts)


def failed(index: int, code: str) -> Result:
    """Return the Result of a line that ended without an answer."""
    text = unanswered(f"batch_req_{index}", b'"id-%d"' % index, code, "No.")
    return Result(index=index, succeeded=False, attempts=3, text=text, backend="gpu")


def test_retries_are_sends_beyond_the_first() -> None:
    """A line that was never sent has none."""
    assert retries_of([by("a", attempts=0), by("a"), by("a", attempts=5)]) == 4


def test_a_backend_has_its_own_tokens() -> None:
    """One alone has all of them; a line without a backend is in no share."""
    assert shares_of([by("a"), by("a", usage=None)], usage=USAGE) == [
        Share(backend="a", lines=2, prompt_tokens=10, completion_tokens=5)
    ]
    some = [by("a"), by("b", usage=None), by(None), by("a")]
    assert shares_of(some, usage=Usage(input_tokens=99)) == [
        Share(backend="a", lines=2, prompt_tokens=20, completion_tokens=10),
        Share(backend="b", lines=1, prompt_tokens=0, completion_tokens=0),
    ]


def test_a_line_that_nobody_can_read_is_in_no_group() -> None:
    """Half a character pair is JSON, and no text; the others are grouped all the same."""
    causes = causes_of([failed(1, "a").text, failed(2, "a").text.replace(b"No.", b"\\ud800"), failed(3, "b").text])
    assert [(each.group.code, each.count, each.custom_ids) for each in by_cause(causes)] == [
        ("a", 1, ("id-1",)),
        ("b", 1, ("id-3",)),
    ]


def test_a_group_has_the_first_message_whole() -> None:
    """What differs from line to line is left out of the group's own, and is what one wants to see of a line."""
    texts = [failed(n, "a").text.replace(b"No.", b"No: 'line %d'." % n) for n in (7, 8)]
    (errors,) = by_cause(causes_of(texts))
    assert (errors.count, errors.group.message, errors.example) == (2, "No: '…'.", "No: 'line 7'.")


async def test_only_what_stands_is_told(ledger_of: Callable[..., Ledger], database: Database, blobs: Blobs) -> None:
    """Of a commit with a Slice that is another's by now, that Slice's lines are in no count, share or group."""
    await database.write(add_organisations)
    await add_work(database, blobs, slices=2)
    first, second = await claim(ledger_of("w1"))
    await database.write(lambda tx: void_leases(tx, worker_id="w2"))
    (heirs,) = await claim(ledger_of("w2"), slices=1)
    assert heirs.slice.ordinal == first.slice.ordinal
    lost = portion(first, [failed(0, "lost"), by("gone", 1)])
    await ledger_of("w1").commit([lost, portion(second, [failed(0, "kept"), by("gpu", 1)])])
    found = await database.read(
        lambda tx: find_progress(
            tx, organisation_id=MINE, batch_id="batch_1", catalogue=NOTHING_CONFIGURED, now=float(NOW)
        )
    )
    assert found is not None
    assert (found.batch.counts.completed, found.batch.counts.failed, found.retries) == (1, 1, 2)
    assert [(each.group.code, each.count) for each in found.errors] == [("kept", 1)]
    assert found.shares == [Share(backend="gpu", lines=2, prompt_tokens=10, completion_tokens=5)]
