"""Webhooks: what may be ordered, what is sent, and when a try that failed is made again."""

import msgspec
import pytest

from batchmill.spec.errors import ApiError
from batchmill.spec.media import is_public_address
from batchmill.spec.states import FINAL
from batchmill.spec.webhooks import (
    BACKOFF,
    EVENTS,
    DeliveryStatus,
    Posted,
    event_body,
    mint_secret,
    parse_webhook,
    verdict,
)

URL = "https://hooks.example.com/batchmill?team=7"


def test_every_end_of_a_batch_is_an_event() -> None:
    """The four final states, and no other."""
    assert set(EVENTS) == FINAL
    assert sorted(EVENTS.values()) == ["batch.cancelled", "batch.completed", "batch.expired", "batch.failed"]


def test_an_order_without_events_is_for_all_of_them() -> None:
    """Left out or null: every end is told; named ones are kept in the table's order, once."""
    assert parse_webhook({"url": URL}, public_only=True).events == tuple(EVENTS.values())
    assert parse_webhook({"url": URL, "events": None}, public_only=True).events == tuple(EVENTS.values())
    named = parse_webhook({"url": URL, "events": ["batch.failed", "batch.completed", "batch.failed"]}, public_only=True)
    assert named.events == ("batch.completed", "batch.failed")


@pytest.mark.parametrize(
    ("value", "param"),
    [
        ([], None),
        ({}, "url"),
        ({"url": 7}, "url"),
        ({"url": "hooks.example.com"}, "url"),
        ({"url": "ftp://hooks.example.com"}, "url"),
        ({"url": "https://"}, "url"),
        ({"url": "https://hooks.example.com:port/"}, "url"),
        ({"url": "https://[::1"}, "url"),
        ({"url": "https://hooks.example.com/ a"}, "url"),
        ({"url": "https://hooks.example.com\\@internal"}, "url"),
        ({"url": "https://h\u00e4user.example"}, "url"),
        ({"url": "https://hooks.example.com/" + "x" * 2048}, "url"),
        ({"url": "https://name:password@hooks.example.com/"}, "url"),
        ({"url": "http://hooks.example.com/"}, "url"),
        ({"url": "https://localhost/"}, "url"),
        ({"url": "https://10.0.0.7/"}, "url"),
        ({"url": "https://127.1/"}, "url"),
        ({"url": "https://[fd00::1]/"}, "url"),
        ({"url": "https://169.254.169.254/latest"}, "url"),
        ({"url": URL, "events": "batch.failed"}, "events"),
        ({"url": URL, "events": []}, "events"),
        ({"url": URL, "events": ["batch.started"]}, "events"),
    ],
)
def test_what_is_wrong_with_an_order_is_named(value: object, param: str | None) -> None:
    """A 400 with the member; nothing that leads inward is taken."""
    with pytest.raises(ApiError) as refused:
        parse_webhook(value, public_only=True)
    assert (refused.value.status, refused.value.param) == (400, param)


def test_the_operator_may_let_events_go_inward() -> None:
    """Without `public_only` http and private hosts are taken, passwords still not."""
    assert parse_webhook({"url": "http://10.0.0.7:8080/x"}, public_only=False).url == "http://10.0.0.7:8080/x"
    with pytest.raises(ApiError):
        parse_webhook({"url": "http://u:p@10.0.0.7/"}, public_only=False)


def test_a_try_is_judged_by_its_status() -> None:
    """2xx is delivered; 410 ends it; all else, a redirect and silence included, is tried again."""
    assert verdict(Posted(status=204), attempts=1).status is DeliveryStatus.DELIVERED
    assert verdict(Posted(status=410), attempts=1).status is DeliveryStatus.FAILED
    for posted in (Posted(status=302), Posted(status=500), Posted(status=404), Posted(reason="refused")):
        judged = verdict(posted, attempts=1)
        assert (judged.status, judged.after) == (DeliveryStatus.PENDING, 5)


def test_tries_come_ever_more_rarely_and_end() -> None:
    """The schedule takes three days; the try after its last pause is the last one."""
    waits = [verdict(Posted(status=500), attempts=n).after for n in range(1, len(BACKOFF) + 1)]
    assert waits == list(BACKOFF) == sorted(BACKOFF)
    assert 3 * 86_400 <= sum(BACKOFF) <= 4 * 86_400
    assert verdict(Posted(status=500), attempts=len(BACKOFF) + 1).status is DeliveryStatus.FAILED


def test_an_event_has_the_shape_of_openais() -> None:
    """Id, type, time, and the batch's id: no counts and no files, which would be old by the time that they are read."""
    body = event_body(event_id="evt_1", event="batch.completed", batch_id="batch_1", created_at=7)
    assert msgspec.json.decode(body) == {
        "id": "evt_1",
        "object": "event",
        "type": "batch.completed",
        "created_at": 7,
        "data": {"id": "batch_1"},
    }


def test_every_secret_is_new() -> None:
    """It has the form of Standard Webhooks."""
    assert mint_secret().startswith("whsec_")
    assert mint_secret() != mint_secret()


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.216.34", True),
        ("10.1.2.3", False),
        ("2606:4700::1111", True),
        ("::1", False),
        ("::ffff:10.0.0.1", False),
    ],
)
def test_an_address_is_judged_as_it_is(address: str, *, public: bool) -> None:
    """What a resolver gives is public or not, in either family."""
    assert is_public_address(address) is public
