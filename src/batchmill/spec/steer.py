"""Steering a batch that is on its way: what the bodies of `window` and `priority` may say, and what a pause is called.

A pause is a flag beside the status, never a ninth one.
"""

from datetime import UTC, datetime

from batchmill.spec import errors
from batchmill.spec.limits import Limits
from batchmill.spec.states import Status
from batchmill.spec.windows import window_seconds

STEERED = frozenset({Status.VALIDATING, Status.IN_PROGRESS})  # in no other has a line still to be sent

_PAUSED = "paused; its window closes at "


def paused(expires_at: int) -> str:
    """Return why a paused batch waits; its window (Unix seconds) keeps running."""
    return f"{_PAUSED}{datetime.fromtimestamp(expires_at, UTC):%Y-%m-%dT%H:%M:%SZ}"


def says_paused(waiting: str | None) -> bool:
    """Say whether a batch's reason to wait is that it is paused."""
    return waiting is not None and waiting.startswith(_PAUSED)


def parse_window(value: object, *, limits: Limits) -> tuple[str, int]:
    """Return the new window as it was written, and its seconds; ApiError for what create would not take either."""
    text = _member(value, "completion_window")
    if not isinstance(text, str):
        raise errors.invalid_type("completion_window", "a string")
    return text, window_seconds(text, limits)


def parse_priority(value: object, *, limits: Limits) -> int:
    """Return the new priority; ApiError when it is no integer or out of range. 5.0 is an integer, as in JSON Schema."""
    number, most = _member(value, "priority"), limits.max_priority
    if isinstance(number, float) and number.is_integer():
        number = int(number)
    if not isinstance(number, int) or isinstance(number, bool):
        raise errors.invalid_type("priority", "an integer")
    if not -most <= number <= most:
        raise errors.invalid_value("priority", f"'priority' must be from -{most} to {most}.")
    return number


def _member(value: object, name: str) -> object:
    if not isinstance(value, dict):
        raise errors.invalid_type(None, "a JSON object")
    if name not in value:
        raise errors.missing_parameter(name)
    return value[name]
