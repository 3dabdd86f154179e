"""The batch's machine as a table: status, event, next status (contract b; design, "The states").

Other code names events, never target statuses.
"""

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType


class Status(StrEnum):
    """The eight states of a batch; there is no ninth."""

    VALIDATING = "validating"
    FAILED = "failed"
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"
    COMPLETED = "completed"
    EXPIRED = "expired"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"


class Event(StrEnum):
    """What moves a batch on; each event has one writer."""

    ACCEPTED = "accepted"  # Validator: every line is good
    REJECTED = "rejected"  # Validator: some rule is broken
    DRAINED = "drained"  # whoever closes the last Slice
    SEALED = "sealed"  # Finalizer: the result files are durable
    SEALED_LATE = "sealed_late"  # the same, and a line was written as batch_expired
    CANCEL = "cancel"  # the API
    WINDOW_PASSED = "window_passed"  # Sweeper


def _row(**targets: Status) -> Mapping[Event, Status]:
    return MappingProxyType({Event(event): status for event, status in targets.items()})


TRANSITIONS: Mapping[Status, Mapping[Event, Status]] = MappingProxyType(
    {
        Status.VALIDATING: _row(
            accepted=Status.IN_PROGRESS,
            rejected=Status.FAILED,
            cancel=Status.CANCELLING,
            window_passed=Status.EXPIRED,
        ),
        Status.IN_PROGRESS: _row(
            drained=Status.FINALIZING,
            cancel=Status.CANCELLING,
            window_passed=Status.FINALIZING,
        ),
        Status.FINALIZING: _row(
            sealed=Status.COMPLETED,
            sealed_late=Status.EXPIRED,
            cancel=Status.CANCELLING,
        ),
        Status.CANCELLING: _row(
            cancel=Status.CANCELLING,  # said again: nothing is written
            sealed=Status.CANCELLED,
        ),
        Status.FAILED: _row(),
        Status.COMPLETED: _row(),
        Status.EXPIRED: _row(),
        Status.CANCELLED: _row(),
    }
)

FINAL = frozenset(status for status, row in TRANSITIONS.items() if not row)

# The column that is written when a batch enters a status.
STAMP: Mapping[Status, str] = MappingProxyType(
    {status: "created_at" if status is Status.VALIDATING else f"{status}_at" for status in Status}
)


def next_status(status: Status, event: Event) -> Status | None:
    """Return where the event leads, or None if it means nothing in this status."""
    return TRANSITIONS[status].get(event)


def diagram() -> str:
    """Return the machine as a Mermaid state diagram, for the docs."""
    lines = ["stateDiagram-v2", f"    [*] --> {Status.VALIDATING}: create"]
    for status, row in TRANSITIONS.items():
        lines += [f"    {status} --> {target}: {event}" for event, target in row.items()]
    lines += [f"    {status} --> [*]" for status in Status if status in FINAL]
    return "\n".join(lines) + "\n"
