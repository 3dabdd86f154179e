"""Posts events to addresses that users have named: over aiohttp, never inward unless the operator says so."""

import asyncio
import errno
import socket
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Protocol

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from batchmill.spec.media import is_public, is_public_address
from batchmill.spec.webhooks import Posted

_SECONDS = 15.0  # Standard Webhooks: a receiver answers within fifteen to thirty
_TOLD = 200  # characters of a reason
_LOOKING_UP = 32  # names at a time


class Hook(Protocol):
    """Whatever takes events to their receivers."""

    async def post(self, url: str, *, body: bytes, headers: Mapping[str, str]) -> Posted:
        """Send once; whatever goes wrong on the way is the reason in what is returned."""
        ...


class _Resolver(AbstractResolver):
    """Looks names up as the system does, in threads of its own: a name server that is silent holds up nothing else.

    With `public_only` only what is public is given: what was judged is what is connected to (no DNS rebinding).
    """

    def __init__(self, *, public_only: bool) -> None:
        self._public_only = public_only
        self._threads = ThreadPoolExecutor(max_workers=_LOOKING_UP, thread_name_prefix="hook-names")

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """See `AbstractResolver`."""
        look = partial(socket.getaddrinfo, host, port, family=family, type=socket.SOCK_STREAM)
        infos = await asyncio.get_running_loop().run_in_executor(self._threads, look)
        found = [(kind, proto, str(address[0])) for kind, _, proto, _, address in infos]
        if self._public_only and not all(is_public_address(address) for _, _, address in found):
            raise OSError(errno.EACCES, f"{host} leads to an address that is not public")
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=kind,
                proto=proto,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for kind, proto, address in found
        ]

    async def close(self) -> None:
        """See `AbstractResolver`; a look-up that is under way ends by itself."""
        self._threads.shutdown(wait=False, cancel_futures=True)


class HttpHook:
    """Each event is one POST on a connection of its own: no redirect is followed, no cookie kept, no body read.

    Args:
        public_only: Only public addresses may be reached.
    """

    def __init__(self, *, public_only: bool) -> None:
        self._public_only = public_only
        self._resolver = _Resolver(public_only=public_only)
        self._session: aiohttp.ClientSession | None = None

    async def post(self, url: str, *, body: bytes, headers: Mapping[str, str]) -> Posted:
        """See `Hook`."""
        if self._public_only and not is_public(url):  # an address in figures is asked of no resolver
            return Posted(reason="the URL does not lead to a public host")
        try:
            async with self._open().post(url, data=body, headers=headers, allow_redirects=False) as answer:
                posted = Posted(status=answer.status)
                return posted if posted.arrived else replace(posted, reason=f"answered with {answer.status}")
        except TimeoutError:
            return Posted(reason=f"no answer within {_SECONDS:.0f} s")
        except (aiohttp.ClientError, OSError, ValueError) as fault:
            return Posted(reason=(str(fault) or type(fault).__name__)[:_TOLD])

    async def close(self) -> None:
        """Close all connections."""
        await self._resolver.close()
        if self._session is not None:
            await self._session.close()
            await asyncio.sleep(0)

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(resolver=self._resolver, use_dns_cache=False, force_close=True),
                timeout=aiohttp.ClientTimeout(total=_SECONDS),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
            )
        return self._session
