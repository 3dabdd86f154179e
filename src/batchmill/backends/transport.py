"""HTTP as the backends need it: one request out, one Reply in, every way to fail told apart."""

import re
import ssl
from collections.abc import Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime
from types import MappingProxyType
from typing import Final, Protocol

from batchmill.backends.backend import Reply

__all__ = ["HEADERS", "IDLE_SECONDS", "Transport", "coding_refused", "retry_after_seconds", "tls_context"]

# Sent with every request.
HEADERS: Final = MappingProxyType(
    {"Accept": "application/json", "Accept-Encoding": "identity", "User-Agent": "batchmill"}
)
# uvicorn, and so vLLM and SGLang, closes an idle connection after 5 s: be first, so that fewer POSTs meet the closing.
IDLE_SECONDS: Final = 4.0

_SECONDS: Final = re.compile(r"\d{1,10}(\.\d{1,6})?", re.ASCII)


class Transport(Protocol):
    """The whole outside world in one method."""

    async def request(
        self,
        *,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes | None,
        deadline: float,
        once: bool = False,
    ) -> Reply:
        """Make one request and read the whole reply, its body raw, as the server sent it.

        Args:
            method: The HTTP method.
            url: The absolute URL.
            headers: The headers to add.
            body: The body, or None.
            deadline: Seconds for everything, from the connect to the last byte of the reply.
            once: Never send it a second time, not even where the first surely met a closed connection.

        Returns:
            The reply. What goes wrong on the way is a fault in it; only a cancel is raised.
        """

    async def close(self) -> None:
        """Close every connection. A second call does nothing."""


def retry_after_seconds(value: str | None, *, now: float) -> float | None:
    """Seconds that a Retry-After header asks for; None where it is absent or makes no sense.

    Args:
        value: The header: seconds, or an HTTP date (RFC 9110, 10.2.3).
        now: Unix time in seconds, which a date is measured from; a date that has passed gives 0.
    """
    if value is None:
        return None
    text = value.strip()
    if _SECONDS.fullmatch(text):
        return float(text)
    try:
        date = parsedate_to_datetime(text)
        # HTTP dates are in GMT; without that word the parser leaves the zone open.
        return max(0.0, (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - now)
    except (ValueError, OverflowError, TypeError, IndexError):  # what the parser raises, by trial
        return None


def coding_refused(*, content: str, transfer: str) -> str:
    """Say why a body is not read that comes in another coding than we asked for; "" where it comes plain.

    Args:
        content: Content-Encoding, "" where it is absent.
        transfer: Transfer-Encoding, "" where it is absent.
    """
    if content.strip().lower() not in ("", "identity"):
        return "the reply is compressed, though we asked for a plain one"
    if transfer.strip().lower() not in ("", "chunked"):
        return "the reply comes in a transfer coding that we did not ask for"
    return ""


def tls_context() -> ssl.SSLContext:
    """Certificates are checked against those that the machine trusts (OpenSSL's SSL_CERT_FILE names others)."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context
