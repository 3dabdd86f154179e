"""What a worker holds and cannot serve goes to those who can."""

from collections.abc import Sequence

import pytest
from sqlalchemy import select

from batchmill.backends.backend import Call, Reply, Unreachable
from batchmill.engine.lanes import STRANDED_SECONDS
from batchmill.schedule.retry import Fault
from batchmill.spec.states import Status
from batchmill.store.tables import slice_
from engine.mill import Hand, Mill, Watched, lines

_LINES = 20


class Dying(Watched):
    """A watched echo backend that is dead from some moment on."""

    is_dead = False

    async def models(self) -> tuple[str, ...]:
        """See `Backend`."""
        if self.is_dead:
            raise Unreachable(f"{self.name} is dead")
        return await super().models()

    async def send(self, call: Call) -> Reply:
        """See `Backend`."""
        return Reply(fault=Fault.UNREACHABLE, detail="dead") if self.is_dead else await super().send(call)


async def _turn(mill: Mill, hands: Sequence[Hand], seconds: float) -> None:
    for _ in range(int(seconds)):
        for hand in hands:
            await hand.scout.step()
            await mill.turn(hand, seconds=1 / len(hands))


@pytest.mark.parametrize("alone", [False, True], ids=["beside others", "alone"])
async def test_lines_of_a_dead_engine_go_to_another_workers(mill: Mill, *, alone: bool) -> None:
    """A minute after its backend died a worker gives its Slices back, counted as after a death of its own.

    Who is alone keeps them: nobody else could take them.
    """
    echo = mill.echo(name="a:")
    dying = Dying(echo._echo, name="a:")
    hand = mill.hand(dying, alone=alone)
    batch_id = await mill.batch(lines(_LINES))
    await hand.accept()
    dying.is_dead = True
    await _turn(mill, [hand], STRANDED_SECONDS / 2)

    async def held() -> list[tuple[str | None, int]]:
        rows = select(slice_.c.owner, slice_.c.crashes)
        return [
            (row.owner, row.crashes) for row in await mill.database.read(lambda tx: tx.connection.execute(rows).all())
        ]

    assert await held() == [(hand.worker_id, 0)]
    await _turn(mill, [hand], STRANDED_SECONDS)
    assert await held() == ([(hand.worker_id, 0)] if alone else [(None, 1)])
    if not alone:
        other = mill.hand(mill.echo(name="b:"), alone=False)
        assert await mill.finish(other, batch_id) is Status.COMPLETED
        assert len(await mill.results(batch_id)) == _LINES
