"""The order in which batches are taken."""

from dataclasses import dataclass

import pytest

from batchmill.spec.queue import in_line
from batchmill.spec.states import FINAL, Status


@dataclass(frozen=True)
class Waits:
    """A batch in a queue."""

    batch_id: str
    expires_at: int
    organisation_id: str = "ours"
    priority: int = 0


FIRST, SECOND, THIRD = Waits("b1", 30), Waits("b2", 10), Waits("b3", 10)


def test_batches_in_progress_go_by_their_deadlines() -> None:
    """The nearest deadline is first, of two alike the older batch."""
    assert in_line(Status.IN_PROGRESS, [FIRST, THIRD, SECOND]) == [SECOND, THIRD, FIRST]


@pytest.mark.parametrize("status", sorted(set(Status) - FINAL - {Status.IN_PROGRESS}))
def test_all_others_go_by_their_age(status: Status) -> None:
    """Whatever their deadlines, the oldest is validated or finalized first."""
    assert in_line(status, [THIRD, FIRST, SECOND]) == [FIRST, SECOND, THIRD]


def test_an_organisations_batches_go_by_priority_in_the_places_that_are_its_own() -> None:
    """The highest first, of two alike the nearer deadline; another organisation's keep their places."""
    low, theirs, mid, high = (
        Waits("b1", 10, priority=-1),
        Waits("b2", 20, "theirs", 100),
        Waits("b3", 30),
        Waits("b4", 40, priority=5),
    )
    assert in_line(Status.IN_PROGRESS, [low, theirs, mid, high]) == [high, theirs, mid, low]
    assert in_line(Status.VALIDATING, [low, high]) == [low, high]
