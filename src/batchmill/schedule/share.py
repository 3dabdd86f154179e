"""How the workers that send to one Backend share its window: what each tells, who judges, and which part each takes.

There is one number, the total. One worker leads: it judges the sum of what all have measured, and says the total. The
others follow. Each takes its part by itself: a fair one, as long as nobody else still holds of it, so that the parts
never come to more than the total. A worker that has nothing holds nothing, and may always send one request beside it.

All that is told passes through one place, a row each, one worker at a time: `settle` is what happens there.
"""

from collections.abc import Mapping
from typing import NamedTuple

from batchmill.schedule.measure import Measure


class Total(NamedTuple):
    """The window of a Backend: who leads, how many requests may be in flight at all workers, and its round.

    0 requests: nobody has said it yet.
    """

    leader: str | None = None
    total: int = 0
    round: int = 0


class Part(NamedTuple):
    """What a worker tells of one Backend.

    It has `in_flight` requests out, could have `wanted`, and `held` of the total is its own. `measure` is what came of
    the `round`; `pressed` counts the refusals for pressure (429) that it has had.
    """

    in_flight: int = 0
    wanted: int = 0
    held: int = 0
    round: int = 0
    pressed: int = 0
    measure: Measure = Measure()

    @property
    def is_busy(self) -> bool:
        """Whether it has something to send, or has sent something."""
        return self.wanted > 0 or self.in_flight > 0


class Heard(NamedTuple):
    """What a worker hears when it has told its part: the window, whether it leads, and the others who live."""

    total: Total
    leads: bool
    held: int
    others: Mapping[str, Part]


def fair(total: int, wants: Mapping[str, int]) -> dict[str, int]:
    """Divide the total: nobody gets more than it wants while another gets less than that and less than the first.

    What nobody wants yet is divided evenly among those that want any, or among all where nobody does: there is room at
    once for work that comes. The parts sum to the total.
    """
    left, parts = total, dict.fromkeys(wants, 0)
    hungry = sorted((worker for worker in wants if wants[worker]), key=lambda worker: (wants[worker], worker))
    for at, worker in enumerate(hungry):
        parts[worker] = min(wants[worker], left // (len(hungry) - at))
        left -= parts[worker]
    takers = hungry or sorted(wants)
    each, rest = divmod(left, max(1, len(takers)))
    for at, worker in enumerate(takers):
        parts[worker] += each + (at < rest)
    return parts


def settle(
    total: Total, *, worker: str, mine: Part, others: Mapping[str, Part], judged: tuple[int, int] | None, size: int
) -> tuple[Total, Part, Heard]:
    """Return what a Backend's row and a worker's own become when it tells its part, and what it hears.

    Args:
        total: The row as it was.
        worker: Who tells.
        mine: What it tells; what it holds is decided here.
        others: What the other workers that live have told.
        judged: The window and the round that it has come to, if it leads as far as it knows.
        size: The window that it would begin with if nobody has said one.
    """
    if total.leader == worker and judged is not None:
        total = Total(worker, *judged)
    elif total.leader == worker or total.leader not in others:  # the leader is gone, or does not know that it leads
        known = total.total if others and total.total else size
        total = Total(worker, known, total.round + 1)
    leads = total.leader == worker
    wants = {worker: mine.wanted} | {other: part.wanted for other, part in others.items()}
    free = total.total - sum(max(part.held, part.in_flight) for part in others.values())
    held = max(0, min(fair(total.total, wants)[worker], free))
    return total, mine._replace(held=held), Heard(total, leads, held, others)
