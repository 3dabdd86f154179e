"""The batch's machine."""

import pytest

from batchmill.spec.states import FINAL, STAMP, TRANSITIONS, Event, Status, diagram, next_status


def reachable(start: Status) -> set[Status]:
    """Return every status that some row of events leads to, the start included."""
    found, todo = {start}, [start]
    while todo:
        fresh = set(TRANSITIONS[todo.pop()].values()) - found
        found |= fresh
        todo += fresh
    return found


def test_there_are_eight_states_and_no_ninth() -> None:
    """The contract's states, each with its row in the table."""
    names = "validating failed in_progress finalizing completed expired cancelling cancelled"
    assert [status.value for status in Status] == names.split()
    assert set(TRANSITIONS) == set(Status)


def test_every_state_can_be_reached() -> None:
    """A new batch is validating; from there some way leads everywhere."""
    assert reachable(Status.VALIDATING) == set(Status)


@pytest.mark.parametrize("status", [status for status in Status if status not in FINAL])
def test_every_batch_can_end(status: Status) -> None:
    """From every state that is not final some way leads to a final one."""
    assert reachable(status) & FINAL


@pytest.mark.parametrize("status", sorted(FINAL))
@pytest.mark.parametrize("event", list(Event))
def test_nothing_leaves_a_final_state(status: Status, event: Event) -> None:
    """No event means anything to a batch that has ended."""
    assert next_status(status, event) is None


def test_the_final_states_are_those_that_clients_wait_for() -> None:
    """Kimi's samples poll exactly for these."""
    assert {Status.COMPLETED, Status.FAILED, Status.EXPIRED, Status.CANCELLED} == FINAL


@pytest.mark.parametrize("event", list(Event))
def test_every_event_moves_something(event: Event) -> None:
    """There is no event without a transition."""
    assert any(event in row for row in TRANSITIONS.values())


@pytest.mark.parametrize(
    ("status", "event", "target"),
    [
        (Status.VALIDATING, Event.ACCEPTED, Status.IN_PROGRESS),
        (Status.VALIDATING, Event.REJECTED, Status.FAILED),
        (Status.VALIDATING, Event.CANCEL, Status.CANCELLING),
        (Status.VALIDATING, Event.WINDOW_PASSED, Status.EXPIRED),
        (Status.IN_PROGRESS, Event.DRAINED, Status.FINALIZING),
        (Status.IN_PROGRESS, Event.WINDOW_PASSED, Status.FINALIZING),
        (Status.FINALIZING, Event.SEALED, Status.COMPLETED),
        (Status.FINALIZING, Event.SEALED_LATE, Status.EXPIRED),
        (Status.FINALIZING, Event.WINDOW_PASSED, None),
        (Status.CANCELLING, Event.CANCEL, Status.CANCELLING),
        (Status.CANCELLING, Event.SEALED, Status.CANCELLED),
        (Status.CANCELLING, Event.WINDOW_PASSED, None),
    ],
)
def test_events_lead_where_the_design_says(status: Status, event: Event, target: Status | None) -> None:
    """The table is the design's."""
    assert next_status(status, event) is target


def test_entering_a_state_stamps_its_own_column() -> None:
    """Each state has one timestamp; a new batch's is created_at."""
    assert STAMP[Status.VALIDATING] == "created_at"
    assert STAMP[Status.IN_PROGRESS] == "in_progress_at"
    assert len(set(STAMP.values())) == len(Status)


def test_the_diagram_shows_every_transition_once() -> None:
    """What the docs print is the table."""
    arrows = [line for line in diagram().splitlines() if "-->" in line]
    assert len(arrows) == len(set(arrows)) == 1 + sum(map(len, TRANSITIONS.values())) + len(FINAL)
    assert "    finalizing --> expired: sealed_late" in arrows
    assert diagram().startswith("stateDiagram-v2\n    [*] --> validating: create\n")
