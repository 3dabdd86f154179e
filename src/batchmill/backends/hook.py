"""Posts events to addresses that users have named: over aiohttp, never inward unless the operator says so."""

import asyncio
import errno
import socket
from collections.abc import Mapping
from typing import Protocol

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from batchmill.spec.media import is_public, is_public_address
from batchmill.spec.webhooks import Posted

_SECONDS = 15.0  # Standard Webhooks: a receiver answers within fifteen to thirty
_TOLD = 200  # characters of a reason


class Hook(Protocol):
    """Whatever takes events to their receivers."""

    async def post(self, url: str, *, body: bytes, headers: Mapping[str, str]) -> Posted:
        """Send once; whatever goes wrong on the way is the reason in what is returned."""
        ...


class _PublicResolver(AbstractResolver):
    """Looks names up, and gives only what is public: what was judged is what is connected to (no DNS rebinding)."""

    def __init__(self) -> None:
        self._inner = aiohttp.ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """See `AbstractResolver`."""
        found = await self._inner.resolve(host, port, family)
        if not all(is_public_address(each["host"]) for each in found):
            raise OSError(errno.EACCES, f"{host} leads to an address that is not public")
        return found

    async def close(self) -> None:
        """See `AbstractResolver`."""
        await self._inner.close()


class HttpHook:
    """Each event is one POST on a connection of its own kind: no redirect is followed, no cookie kept, no body read.

    Args:
        public_only: Only public addresses may be reached.
    """

    def __init__(self, *, public_only: bool) -> None:
        self._public_only = public_only
        self._session: aiohttp.ClientSession | None = None

    async def post(self, url: str, *, body: bytes, headers: Mapping[str, str]) -> Posted:
        """See `Hook`."""
        if self._public_only and not is_public(url):  # an address in figures is asked of no resolver
            return Posted(reason="the URL does not lead to a public host")
        try:
            async with self._open().post(url, data=body, headers=headers, allow_redirects=False) as answer:
                reason = None if answer.ok else f"answered with {answer.status}"
                return Posted(status=answer.status, reason=reason)
        except TimeoutError:
            return Posted(reason=f"no answer within {_SECONDS:.0f} s")
        except (aiohttp.ClientError, OSError, ValueError) as fault:
            return Posted(reason=(str(fault) or type(fault).__name__)[:_TOLD])

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()
            await asyncio.sleep(0)

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            resolver = _PublicResolver() if self._public_only else aiohttp.ThreadedResolver()
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(resolver=resolver, use_dns_cache=False),
                timeout=aiohttp.ClientTimeout(total=_SECONDS),
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        return self._session
