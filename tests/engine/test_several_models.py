"""Several models in one file: what one of them does is no other's trouble."""

import pytest

from engine.mill import Mill, line

EACH = 300


def interleaved(*models: str, run: int) -> bytes:
    """Return lines of these models, so many of each model in a row."""
    order = [model for _ in range(EACH // run) for model in models for _ in range(run)]
    return b"".join(line(f"r-{n}", f"hi {n}", model) for n, model in enumerate(order))


@pytest.mark.parametrize("run", [1, 7, EACH], ids=["line by line", "seven by seven", "one after the other"])
@pytest.mark.parametrize("first", ["hangs", "works"])
async def test_a_model_that_hangs_stalls_no_other(mill: Mill, run: int, first: str) -> None:
    """All lines of the model that answers are sent at once, while the other's backend answers nothing."""
    hangs = mill.echo(latency=1e6, models=("hangs",), name="hangs:")
    works = mill.echo(latency=0.01, models=("works",), name="works:")
    hand = mill.hand(hangs, works, window=32)
    second = {"hangs": "works", "works": "hangs"}[first]
    await mill.batch(interleaved(first, second, run=run))
    await hand.accept()
    await mill.turn(hand, seconds=20)
    assert len(works.calls) == EACH // run * run
    assert hangs.open == 32
