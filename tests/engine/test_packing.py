"""A batch of embeddings whose lines go together: the engine does not notice, and neither does its owner."""

import json
from typing import Any

from batchmill.backends.packing import PackingBackend
from batchmill.spec.states import Status
from engine.mill import Hand, Mill

EMBEDDINGS = "/v1/embeddings"


def embeddings(count: int) -> bytes:
    """Return so many lines; the last is one that the echo backend refuses."""
    bodies = [{"model": "echo", "input": f"text {n}"} for n in range(count - 1)]
    lines = [
        {"custom_id": f"r-{n}", "method": "POST", "url": EMBEDDINGS, "body": body}
        for n, body in enumerate([*bodies, {"model": "echo", "input": [[1, 2]]}])
    ]
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


async def outcome(mill: Mill, hand: Hand) -> tuple[Status, list[Any], list[Any], object]:
    """Run a batch; return its status, what each line got but for ids and usage, and the usage of all."""
    batch_id = await mill.batch(embeddings(100), endpoint=EMBEDDINGS)
    status = await mill.finish(hand, batch_id)
    told = [
        (line["custom_id"], line["response"]["status_code"], line["response"]["body"] | {"usage": None})
        for line in await mill.results(batch_id)
    ]
    failed = [line["custom_id"] for line in await mill.results(batch_id, "error")]
    return status, told, failed, (await mill.look(batch_id)).object.usage


async def test_a_batch_in_packs_ends_as_one_that_goes_line_by_line(mill: Mill) -> None:
    """The results are the same, in the same order, the tokens add up to the same, and far fewer calls were made."""
    plain, packed = mill.echo(), mill.echo(latency=0.05)
    alone = await outcome(mill, mill.hand(plain, window=64))
    together = await outcome(mill, mill.hand(PackingBackend(backend=packed, clock=mill.clock), window=64))
    assert together == alone
    assert together[0] is Status.COMPLETED
    assert len(together[1]) == 99
    assert together[2] == ["r-99"]
    assert len(plain.calls) == 100
    assert len(packed.calls) <= 10
