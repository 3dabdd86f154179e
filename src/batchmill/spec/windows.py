"""The completion window: a whole number and a unit, such as `24h` or `7d` (contract c.4)."""

import re

from batchmill.spec import errors
from batchmill.spec.limits import UNITS, Limits

_WINDOW = re.compile(r"([1-9][0-9]{0,4})([mhd])")


def window_seconds(text: str, limits: Limits) -> int:
    """Return the length of a window in seconds; ApiError (param completion_window) when it is not one of ours."""
    match = _WINDOW.fullmatch(text)
    if match and match[2] in limits.window_units:
        seconds = int(match[1]) * UNITS[match[2]]
        if limits.window_min <= seconds <= limits.window_max:
            return seconds
    shortest, longest = _spell(limits.window_min, limits), _spell(limits.window_max, limits)
    units = " or ".join(limits.window_units)
    raise errors.invalid_value(
        "completion_window",
        f"'completion_window' must be a whole number with the unit {units}, from {shortest} to {longest}.",
    )


def _spell(seconds: int, limits: Limits) -> str:
    """Return the shortest text for a length of time, such as `7d`; falls back to seconds where no unit fits."""
    for unit in sorted(limits.window_units, key=UNITS.__getitem__, reverse=True):
        if seconds % UNITS[unit] == 0:
            return f"{seconds // UNITS[unit]}{unit}"
    return f"{seconds} seconds"
