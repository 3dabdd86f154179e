"""Who asks: the key of a request, looked up once, and the limit on bad ones."""

from collections.abc import MutableMapping
from typing import Any

from batchmill.api.rate import Buckets
from batchmill.clock import Clock
from batchmill.spec import errors
from batchmill.spec.errors import ApiError
from batchmill.spec.ids import is_key, key_digest
from batchmill.spec.limits import Limits
from batchmill.store.database import Database
from batchmill.store.organisation import Caller, find_caller


class Auth:
    """Knows callers by their `Authorization` header; a key anywhere else is none (invariant S3).

    Bad keys are counted by each process for itself: a key of 256 bits is not guessed by N times as many tries, and who
    has none shall not cost a write.
    """

    def __init__(self, *, database: Database, clock: Clock, limits: Limits) -> None:
        self._database = database
        self._clock = clock
        self._most = limits.failed_auth_per_minute
        self._failed = Buckets(clock=clock)

    async def caller(self, scope: MutableMapping[str, Any]) -> Caller:
        """Return who sent a request. A revocation counts from the next request on.

        Raises:
            ApiError: the one 401 (choice 10), or a 429 in its place where an address sent too many bad keys
                (invariant S10); a 400 for two headers, which proxies in front might judge by the other one.
        """
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        if len(given) > 1:
            raise errors.invalid_request("Send one 'Authorization' header, not several.")
        found = await self.still(scope)
        if found is None:
            raise await self._refusal(scope)
        return found

    async def still(self, scope: MutableMapping[str, Any]) -> Caller | None:
        """Return who sent a request, None if its key is not good, or not any more; that counts as no try of another."""
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        key = _key(given[0]) if given else None
        if key is None:
            return None
        digest, now = key_digest(key), int(self._clock.now())
        return await self._database.read(lambda tx: find_caller(tx, digest=digest, now=now))

    async def _refusal(self, scope: MutableMapping[str, Any]) -> ApiError:
        if self._most is not None:
            address, _ = scope.get("client") or ("", 0)
            taken = await self._failed.take(address, per_minute=self._most)
            if not taken.allowed:
                return errors.rate_limited(taken.wait)
        return errors.unauthenticated()


def _key(authorization: bytes) -> str | None:
    """Return the key of a header, if it has the shape of one."""
    scheme, _, credentials = authorization.decode("latin-1").partition(" ")
    key = credentials.strip()
    return key if scheme.lower() == "bearer" and is_key(key) else None
