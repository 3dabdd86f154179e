"""Webhooks: which events there are, what is sent, and when a delivery that failed is tried again.

The shape of an event is OpenAI's, its headers are those of Standard Webhooks: `client.webhooks.unwrap` reads it.
"""

import base64
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from urllib.parse import urlsplit

import msgspec

from batchmill.spec import errors
from batchmill.spec.media import is_public
from batchmill.spec.states import Status

EVENTS: Mapping[Status, str] = MappingProxyType(
    {status: f"batch.{status}" for status in (Status.COMPLETED, Status.FAILED, Status.EXPIRED, Status.CANCELLED)}
)

# Seconds from a try that failed to the next one: the schedule that Standard Webhooks recommends, three days in all.
_MINUTE, _HOUR = 60, 3_600
BACKOFF = (5, 5 * _MINUTE, 30 * _MINUTE, 2 * _HOUR, 5 * _HOUR, 10 * _HOUR, 14 * _HOUR, 20 * _HOUR, 24 * _HOUR)

_LONGEST_URL = 2_048
_SECRET_BYTES = 32
_GONE = 410  # Standard Webhooks: the receiver wants no more


class DeliveryStatus(StrEnum):
    """What became of a delivery."""

    PENDING = "pending"
    DELIVERED = "delivered"
    FAILED = "failed"  # no more tries by itself


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookOrder:
    """A well-formed order for a webhook."""

    url: str
    events: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Posted:
    """What came of one try: the HTTP status of the answer, or else why there was none."""

    status: int | None = None
    reason: str | None = None

    @property
    def arrived(self) -> bool:
        """Say whether the receiver has taken it: any 2xx."""
        return self.status is not None and 200 <= self.status < 300  # noqa: PLR2004 - the 2xx class


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a try means for its delivery; `after` are the seconds until the next one, None if there is none."""

    status: DeliveryStatus
    after: int | None = None


def mint_secret() -> str:
    """Return a new secret to sign with, in the form of Standard Webhooks; it has to be kept as it is."""
    return "whsec_" + base64.b64encode(secrets.token_bytes(_SECRET_BYTES)).decode()


def verdict(posted: Posted, *, attempts: int) -> Verdict:
    """Judge a try, `attempts` with it: any 2xx is delivered, 410 ends it, everything else is tried again."""
    if posted.arrived:
        return Verdict(status=DeliveryStatus.DELIVERED)
    if posted.status == _GONE or attempts > len(BACKOFF):
        return Verdict(status=DeliveryStatus.FAILED)
    return Verdict(status=DeliveryStatus.PENDING, after=BACKOFF[attempts - 1])


def event_body(*, event_id: str, event: str, batch_id: str, created_at: int) -> bytes:
    """Return what is sent, the same bytes at every try."""
    made = {"id": event_id, "object": "event", "type": event, "created_at": created_at, "data": {"id": batch_id}}
    return msgspec.json.encode(made)


def parse_webhook(value: object, *, public_only: bool) -> WebhookOrder:
    """Return the order in a decoded JSON body; ApiError for the first thing wrong. Unknown members are ignored.

    With `public_only` the URL must be https to a public host; what its name stands for is judged when it is called.
    """
    if not isinstance(value, dict):
        raise errors.invalid_type(None, "a JSON object")
    if "url" not in value:
        raise errors.missing_parameter("url")
    return WebhookOrder(
        url=_url(value["url"], public_only=public_only), events=_events(value.get("events"), tuple(EVENTS.values()))
    )


def _url(value: object, *, public_only: bool) -> str:
    if not isinstance(value, str):
        raise errors.invalid_type("url", "a string")
    parts = _split(value)
    if parts is None or len(value) > _LONGEST_URL:
        raise errors.invalid_value("url", f"'url' must be an http(s) URL of at most {_LONGEST_URL} visible characters.")
    if "@" in parts[1]:
        raise errors.invalid_value("url", "'url' may hold no user name and no password: what is sent is signed.")
    if public_only and not (parts[0] == "https" and is_public(value)):
        raise errors.invalid_value("url", "'url' must begin with https:// and lead to a public host.")
    return value


def _split(url: str) -> tuple[str, str] | None:
    """Return scheme and authority of a URL; None if it is not one that can be posted to."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return None
    is_visible = url.isascii() and url.isprintable() and " " not in url and "\\" not in url
    return (parts.scheme, parts.netloc) if parts.scheme in {"http", "https"} and parts.hostname and is_visible else None


def _events(value: object, known: Sequence[str]) -> tuple[str, ...]:
    if value is None:
        return tuple(known)
    if not isinstance(value, list):
        raise errors.invalid_type("events", "an array of event types, or null")
    if not value or any(event not in known for event in value):
        raise errors.invalid_value("events", f"'events' must name one or more of: {', '.join(known)}.")
    return tuple(event for event in known if event in value)
