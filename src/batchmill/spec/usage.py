"""What was used in a day of UTC, as it is counted and as the API shows it; and the days themselves."""

import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import NamedTuple

import msgspec

from batchmill.spec import errors
from batchmill.spec.objects import Usage
from batchmill.spec.prices import Cost

DAY_SECONDS = 86_400
_DAYS = 30  # that are shown where none is asked for
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)
_EPOCH = date(1970, 1, 1).toordinal()
_LAST = date.max.toordinal() - _EPOCH


class Place(NamedTuple):
    """Where an entry stands among what was used: sorts as they are told."""

    day: int
    key_id: str  # empty where keys are not told apart, or nobody has noted it
    model: str

    def text(self) -> str:
        """Return it as a cursor: opaque, and printable whatever the model is called."""
        return urlsafe_b64encode(msgspec.json.encode(self)).decode().rstrip("=")


class Used(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Requests that have a result, those of them that failed, and the tokens that backends told of."""

    requests: int = 0
    failed: int = 0
    tokens: Usage = Usage()


def total_used(shares: Iterable[Used]) -> Used:
    """Return the sum."""
    shares = tuple(shares)
    return Used(
        requests=sum(used.requests for used in shares),
        failed=sum(used.failed for used in shares),
        tokens=total_tokens(used.tokens for used in shares),
    )


def total_tokens(usages: Iterable[Usage]) -> Usage:
    """Return the sum."""
    told = tuple(usages)
    return Usage(
        input_tokens=sum(usage.input_tokens for usage in told),
        cached_tokens=sum(usage.cached_tokens for usage in told),
        output_tokens=sum(usage.output_tokens for usage in told),
        reasoning_tokens=sum(usage.reasoning_tokens for usage in told),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class DayUse:
    """What was used of one model in one day, with one key; without `key_id`, with keys that are not told apart."""

    day: int  # days since 1970-01-01, UTC
    model: str
    used: Used
    key_id: str | None = None
    key_name: str | None = None

    @property
    def place(self) -> Place:
        """Return where it stands among others."""
        return Place(self.day, self.key_id or "", self.model)

    def wire(self, cost: Cost | None) -> dict[str, object]:
        """Return an entry of `GET /v1/usage`."""
        tokens = self.used.tokens
        return {
            "day": day_text(self.day),
            "key_id": self.key_id,
            "key_name": self.key_name,
            "model": self.model,
            "requests": self.used.requests,
            "failed": self.used.failed,
            "input_tokens": tokens.input_tokens,
            "cached_tokens": tokens.cached_tokens,
            "output_tokens": tokens.output_tokens,
            "reasoning_tokens": tokens.reasoning_tokens,
            "cost": None if cost is None else cost.wire(),
        }


def parse_place(text: str) -> Place:
    """Return the cursor that a client has sent.

    Raises:
        ApiError: it is none of ours.
    """
    try:
        place = msgspec.json.decode(urlsafe_b64decode(text + "=" * (-len(text) % 4)), type=Place)
    except (ValueError, msgspec.DecodeError):
        place = None
    if place is None or place.text() != text or not 0 <= place.day <= _LAST or "\0" in place.model + place.key_id:
        raise errors.invalid_value("after", "'after' must be the last_id of an earlier page.")
    return place


def day_of(now: float) -> int:
    """Return the day of UTC that a Unix time is in, in days since 1970-01-01."""
    return int(now // DAY_SECONDS)


def day_text(day: int) -> str:
    """Return a day as YYYY-MM-DD."""
    return date.fromordinal(_EPOCH + day).isoformat()


def day_end(day: int) -> int:
    """Return the Unix second of the midnight that ends a day."""
    return (day + 1) * DAY_SECONDS


def time_text(at: int) -> str:
    """Return a Unix second as people read it."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def read_days(first: str | None, last: str | None, *, today: int, most: int) -> tuple[int, int]:
    """Return the first and the last day that `from` and `to` ask for: without `to` until today, without `from` 30 days.

    Raises:
        ApiError: one is no day, they are the wrong way round, or they are more than `most` days.
    """
    until = today if last is None else _read_day("to", last)
    since = max(0, until - _DAYS + 1) if first is None else _read_day("from", first)
    if since > until:
        raise errors.invalid_value("from", f"'from' must be no later than 'to', which is {day_text(until)}.")
    if until - since >= most:
        raise errors.invalid_value("from", f"From 'from' to 'to' there may be {most} days at most.")
    return since, until


def _read_day(name: str, text: str) -> int:
    if _DATE.fullmatch(text):
        try:
            day = date.fromisoformat(text).toordinal() - _EPOCH
        except ValueError:  # the 30th of February
            day = -1
        if day >= 0:
            return day
    raise errors.invalid_value(name, f"'{name}' must be a day such as 2026-11-27, from 1970-01-01 on.")
