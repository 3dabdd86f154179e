"""Answers to a batch that `made.py` made, recorded as a Runner does: group commits over several Slices at a time."""

from made import MODEL, Made

from batchmill.ledger.ledger import Claim, Ledger, Portion
from batchmill.ledger.segment import Result
from batchmill.spec.results import answered, result_id
from batchmill.telemetry import Metrics

LEASE = 3600.0
_REPLY = b'{"id":"x","object":"chat.completion","choices":[{"index":0,"message":{"role":"assistant","content":"%s"}}]}'
_TEXT = b"It depends on what you mean by that. " * 14
_AT_ONCE = 4  # Slices in one commit, a quarter of each


async def answer(made: Made, *, lines: int) -> None:
    """Answer at least so many lines, in the file's order; Slices are done with or not begun."""
    ledger = Ledger(
        database=made.database,
        blobs=made.blobs,
        clock=made.clock,
        worker_id="bench",
        lease=LEASE,
        metrics=Metrics(),
    )
    while lines > 0 and (claims := await ledger.claim(slices=_AT_ONCE, models=[MODEL])):
        for part in range(_AT_ONCE):
            await ledger.commit([_portion(claim, part) for claim in claims])
        lines -= sum(claim.slice.lines for claim in claims)


def _portion(claim: Claim, part: int) -> Portion:
    """Return the results of one quarter of a Slice."""
    lines = claim.slice.lines
    begin, end = (lines * quarter // _AT_ONCE for quarter in (part, part + 1))
    results = [
        Result(
            index=index,
            succeeded=True,
            attempts=1,
            text=answered(
                result_id(claim.batch.id, claim.records[index].line),
                b'"request-%d"' % (claim.records[index].line - 1),
                200,
                "req_0123456789abcdef",
                _REPLY % _TEXT,
            ),
        )
        for index in range(begin, end)
    ]
    done = ((1 << end) - 1).to_bytes((lines + 7) // 8, "little")
    return Portion(slice=claim.slice, results=results, done=done, closed=end == lines)
