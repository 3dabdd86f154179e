"""What busy backends say of themselves reaches their paces."""

from batchmill.backends.router import Router
from batchmill.engine.gauging import Gauging
from batchmill.engine.lanes import Lane, Lanes
from batchmill.schedule.pace import Pace
from batchmill.schedule.window import Gauges
from fakeclock import FakeClock


class _Engine:
    """A Backend that shows its gauges."""

    def __init__(self, name: str, gauges: Gauges | None) -> None:
        self.name = name
        self.shown = gauges
        self.looks = 0

    async def gauges(self) -> Gauges | None:
        self.looks += 1
        return self.shown


def busy(engine: _Engine) -> Lane:
    """Return a lane with 64 requests in flight."""
    pace = Pace(window=64, most=1024)
    for _ in range(64):
        pace.sent(0.0)
    return Lane(backend=engine, pace=pace)


async def test_a_busy_backends_gauges_reach_its_pace() -> None:
    """An idle one is not asked, and one that says nothing is left alone for a minute."""
    clock = FakeClock()
    telling, silent, idle = _Engine("t", Gauges(waiting=40, running=24)), _Engine("s", None), _Engine("i", None)
    lanes = [busy(telling), busy(silent), Lane(backend=idle, pace=Pace())]
    gauging = Gauging(lanes=lanes, clock=clock)
    for _ in range(3):
        assert not await gauging.step()
        await clock.advance(1.0)
    assert (telling.looks, silent.looks, idle.looks) == (3, 1, 0)
    await clock.advance(60.0)
    await gauging.step()
    assert silent.looks == 2


async def test_lanes_tell_when_prompts_go_on_and_how_many_may_have_been_out() -> None:
    """The Runner wakes for the one, and sends so many alone after deaths."""
    engine = _Engine("e", None)
    pace = Pace(window=8, most=64)
    router = Router([engine])
    router.learn(engine, ["m"])
    lanes = Lanes(lanes=[Lane(backend=engine, pace=pace)], router=router)
    assert lanes.most(["m"]) == 64
    assert lanes.most(["other"]) == 0
    assert lanes.opens_at(0.0) is None
    pace.sent(0.0, prefill=8192)
    opens_at = lanes.opens_at(0.0)
    assert opens_at is not None
    assert opens_at > 0
