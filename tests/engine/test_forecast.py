"""What a batch says of its own end while an engine runs it."""

from batchmill.schedule.forecast import UNKNOWN, Forecast
from batchmill.spec.states import Status
from batchmill.store.forecast import with_forecasts
from engine.mill import Mill, lines


async def told(mill: Mill, batch_id: str) -> Forecast | None:
    """Return the forecast of a batch."""
    found = await mill.look(batch_id)
    (seen,) = await mill.database.read(lambda tx: with_forecasts(tx, [found], now=mill.clock.now()))
    return seen.object.progress


async def test_a_batch_ends_when_it_said_that_it_would(mill: Mill) -> None:
    """At eight lines every two seconds nothing is told in the first seconds, and then the very end, again and again."""
    hand = mill.hand(mill.echo(latency=2.0), window=8)
    batch_id = await mill.batch(lines(120))
    await hand.accept()
    began = mill.clock.now()
    seen: dict[float, Forecast | None] = {}
    while await mill.status(batch_id) is Status.IN_PROGRESS:
        seen[mill.clock.now() - began] = await told(mill, batch_id)
        await mill.turn(hand, seconds=2)
    ended = mill.clock.now()
    early = [forecast for second, forecast in seen.items() if second < 9]
    late = [forecast for second, forecast in seen.items() if second > 14]
    assert len(late) >= 5
    assert early == [UNKNOWN] * 5
    for forecast in late:
        assert forecast is not None
        assert forecast.eta is not None
        assert abs(forecast.eta - ended) <= 3
    assert await told(mill, batch_id) is None
