"""Token buckets: how many calls a minute someone may make; in bounded memory, or in rows that processes share."""

import math
from collections import OrderedDict
from dataclasses import dataclass
from typing import Protocol

from batchmill.clock import Clock
from batchmill.store.database import Database
from batchmill.store.rate import take_token

_MINUTE = 60.0
_MOST = 10_000  # buckets remembered; about 2 MB


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """What came of one call: `wait` is the seconds until the next one may be made, `reset` those until all may."""

    allowed: bool
    limit: int
    remaining: int
    wait: int
    reset: int

    def headers(self) -> list[tuple[bytes, bytes]]:
        """Return the rate headers of contract a.0."""
        facts = {b"x-ratelimit-limit": self.limit, b"x-ratelimit-remaining": self.remaining}
        return [(name, str(value).encode()) for name, value in (facts | {b"x-ratelimit-reset": self.reset}).items()]


class Rate(Protocol):
    """A bucket for each name, which fills up evenly."""

    async def take(self, name: str, *, per_minute: int) -> Taken:
        """Take a token out of a bucket that holds `per_minute` (at least 1), if there is one."""
        ...


class Buckets:
    """Buckets in the memory of one process; past `most` names the one unused for longest is forgotten."""

    def __init__(self, *, clock: Clock, most: int = _MOST) -> None:
        self._clock = clock
        self._most = most
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # tokens, and when there were so many

    async def take(self, name: str, *, per_minute: int) -> Taken:
        """See `Rate`."""
        now = self._clock.boot()
        tokens, then = self._buckets.pop(name, (float(per_minute), now))
        tokens = min(float(per_minute), tokens + (now - then) * (per_minute / _MINUTE))
        allowed = tokens >= 1
        tokens -= allowed
        self._buckets[name] = tokens, now
        if len(self._buckets) > self._most:
            self._buckets.popitem(last=False)
        return _taken(allowed, tokens, per_minute)


class SharedBuckets:
    """Buckets of organisations in rows, for all API processes over one PostgreSQL: together they grant the limit.

    Raises:
        DatabaseAway, DiskFull: as any write.
    """

    def __init__(self, *, database: Database) -> None:
        self._database = database

    async def take(self, name: str, *, per_minute: int) -> Taken:
        """See `Rate`; `name` is an organisation's id."""
        allowed, tokens = await self._database.write(
            lambda tx: take_token(tx, organisation_id=name, per_minute=per_minute)
        )
        return _taken(allowed, tokens, per_minute)


def _taken(allowed: bool, tokens: float, per_minute: int) -> Taken:
    rate = per_minute / _MINUTE
    return Taken(
        allowed=allowed,
        limit=per_minute,
        remaining=int(tokens),
        wait=math.ceil(max(0.0, 1 - tokens) / rate),
        reset=math.ceil((per_minute - tokens) / rate),
    )
