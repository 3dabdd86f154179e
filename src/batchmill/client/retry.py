"""When a call is tried again, and after how long: as the official clients do."""

import random
from collections.abc import Mapping
from email.utils import parsedate_to_datetime

TRIES = 5  # of a call that is answered
TRIES_AWAY = 3  # of one that is not
_AGAIN, _NEVER = frozenset({408, 409, 429}), 501  # it has no such route
NO_USE = frozenset({"exceeded_current_quota_error", "insufficient_quota"})  # a 429 that no waiting ends
_FIRST, _LONGEST = 0.5, 8.0  # seconds of our own backoff
_LONGEST_ASKED = 60.0  # seconds that a server may ask for


def is_tried_again(status: int, headers: Mapping[str, str], code: str | None) -> bool:
    """Return whether the call may succeed later; `x-should-retry` has the last word."""
    said = headers.get("x-should-retry")
    if said in {"true", "false"}:
        return said == "true"
    return code not in NO_USE and (status in _AGAIN or (status >= 500 and status != _NEVER))  # noqa: PLR2004 - HTTP's own


def wait_before(tries: int, headers: Mapping[str, str], now: float) -> float:
    """Return the seconds to wait after so many tries: what the server asks for, or more each time.

    Args:
        tries: How often it was tried, 1 or more.
        headers: Those of the answer; none if there was no answer.
        now: Unix seconds, for a `Retry-After` that is a date.
    """
    asked = _asked(headers, now)
    if asked is not None and 0 < asked <= _LONGEST_ASKED:
        return asked
    own: float = min(_FIRST * 2.0 ** (tries - 1), _LONGEST)
    return own * random.uniform(0.75, 1.0)  # noqa: S311 - spreads clients out


def _asked(headers: Mapping[str, str], now: float) -> float | None:
    try:
        if "retry-after-ms" in headers:
            return float(headers["retry-after-ms"]) / 1000
        said = headers["retry-after"]
        return float(said) if said.strip().isdigit() else parsedate_to_datetime(said).timestamp() - now
    except (KeyError, ValueError):
        return None
