"""Batches with an input and a Plan, and Results for their lines."""

from collections.abc import Iterable, Sequence

from batchmill.blobs.blobs import Blobs
from batchmill.ledger.ledger import Claim, Ledger, Portion
from batchmill.ledger.segment import Result
from batchmill.schedule.plan import Record, pack
from batchmill.spec.objects import Usage
from batchmill.store.database import Database
from store.rows import MINE, add_running

USAGE = Usage(input_tokens=10, cached_tokens=2, output_tokens=5, reasoning_tokens=1)


def put(blobs: Blobs, key: str, data: bytes) -> None:
    """Write a blob."""
    writer = blobs.writer(key)
    writer.write(data)
    writer.finish()


async def add_work(
    database: Database,
    blobs: Blobs,
    batch_id: str = "batch_1",
    *,
    slices: int = 2,
    lines: int = 8,
    organisation_id: str = MINE,
    gap: int = 0,
    order: Sequence[int] | None = None,
) -> str:
    """Add a batch in progress with its bytes; its lines say `"custom_id": "id-0"` and so on. Return its id.

    `gap` is how many blank lines stand behind each; `order` the Plan's, by line, else it is the file's.
    """
    text, records = b"", list[Record]()
    for number in range(slices * lines):
        token = f'"id-{number}"'.encode()
        line = b'{"custom_id": %b}' % token
        record = Record(
            offset=len(text),
            length=len(line),
            line=number + 1,
            id_offset=line.index(token),
            id_length=len(token),
            body_offset=0,
            body_length=0,
            model=0,
            tokens=1,
            prefix=0,
        )
        text += line + b"\n" * (1 + gap)
        records.append(record)
    plan = b"".join(pack(records[number]) for number in order or range(len(records)))
    put(blobs, f"{batch_id}-input", text)
    put(blobs, f"{batch_id}-plan", plan)
    await database.write(
        lambda tx: add_running(tx, batch_id, slices=slices, lines=lines, organisation_id=organisation_id)
    )
    return batch_id


async def claim(ledger: Ledger, slices: int = 9, *, besides: Iterable[str] = ()) -> list[Claim]:
    """Claim Slices of the one model that there is."""
    return await ledger.claim(slices=slices, models=["m"], besides=tuple(besides))


def result(index: int, *, succeeded: bool = True, usage: Usage | None = USAGE) -> Result:
    """Return the Result of a line."""
    return Result(index=index, succeeded=succeeded, attempts=1, text=b"line %d\n" % index, usage=usage)


def portion(claimed: Claim, results: Iterable[Result], *, before: Iterable[int] = ()) -> Portion:
    """Return what a worker hands over: new Results, and the bitmap with them and those `before` in it."""
    fresh = list(results)
    bits = sum(1 << index for index in {*before, *(one.index for one in fresh)})
    lines = claimed.slice.lines
    return Portion(
        slice=claimed.slice,
        results=fresh,
        done=bits.to_bytes((lines + 7) // 8, "little"),
        closed=bits == (1 << lines) - 1,
    )


def whole(claimed: Claim) -> Portion:
    """Return a Result for each line of a Slice."""
    return portion(claimed, map(result, range(claimed.slice.lines)))
